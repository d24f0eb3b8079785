"""The mean of the weights of several models, such as the last checkpoints of a run.

Averaging late checkpoints gives some of what the decay of the learning rate gives, without any training: Izmailov et
al., "Averaging weights leads to wider optima and better generalization" (2018); Kaddour, "Stop wasting my time!"
(2022); Sanyal et al., "Early weight averaging meets high learning rates for LLM pre-training" (2023).
"""

from collections.abc import Sequence

import numpy as np

from lucid.models.bert.config import BERTConfig
from lucid.models.bert.pretraining import BERTForPreTraining
from lucid.models.bert.stored_weights import StoredWeights
from lucid.nn import init


def mean_of(config: BERTConfig, models: Sequence[StoredWeights]) -> BERTForPreTraining:
    """Return a model whose parameters are the means of those of `models`, all of which are whole and have this shape.

    Sums are made in float64, and each mean is rounded to float32 once. However many models there are, this takes the
    memory of one, and of one of its parameters in float64. Raises `CheckpointError` if a file cannot be read.
    """
    with init.without_draws():
        mean = BERTForPreTraining(config)
    for name, parameter in mean.state_dict().items():
        total = np.zeros(parameter.shape, np.float64)
        for weights in models:
            total += weights.parameter(name)
        total /= len(models)
        parameter[...] = total
    return mean
