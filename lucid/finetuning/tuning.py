"""Trains a classifier on labelled examples, on all ranks, and predicts labels with it.

As in pretraining, order, dropout and loss are functions of the seed and of global coordinates, so the results do not
depend on the number of ranks, up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lucid import random
from lucid.backend import Array, to_device, to_host
from lucid.data.permutation import Permutation
from lucid.distributed import Communicator, DistributedDataParallel
from lucid.finetuning.encoding import Encoded
from lucid.models.bert.classification import BERTForSequenceClassification, BERTForTokenClassification
from lucid.models.bert.flops import forward_flops_each
from lucid.models.bert.heads import most_probable
from lucid.optim import AdamW, WarmupPolynomialDecay, clip_scale, global_norm
from lucid.training.dealing import deal

Classifier = BERTForSequenceClassification | BERTForTokenClassification

_MAX_GRADIENT_NORM = 1.0
# Examples that a rank predicts at once.
_PREDICTED_AT_ONCE = 32


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned: AdamW, a linear warm-up, and a linear decay to 0 (Devlin et al., 2018).

    `batch_size` is that of all ranks together, and `warmup` a fraction of the steps.
    """

    learning_rate: float
    epochs: int = 3
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01

    def steps(self, examples: int) -> int:
        """Return the number of steps for so many examples."""
        return max(1, round(self.epochs * examples / self.batch(examples)))

    def batch(self, examples: int) -> int:
        """Return the examples of a step: `batch_size`, or all if there are fewer."""
        return min(self.batch_size, examples)


def fine_tune(
    ddp: DistributedDataParallel[Classifier],
    data: Encoded,
    recipe: Recipe,
    seed: int,
    communicator: Communicator,
    advance: Callable[[], object] = lambda: None,
) -> int:
    """Train the module of `ddp` on `data`, and return how many updates were skipped, as gradients were not finite.

    `advance` is called after each step. All ranks call this; there are at most as many as examples in a step.
    """
    model, size, steps = ddp.module, recipe.batch(len(data)), recipe.steps(len(data))
    schedule = WarmupPolynomialDecay(peak=recipe.learning_rate, warmup_steps=round(recipe.warmup * steps), steps=steps)
    optimizer = AdamW(ddp.partition, weight_decay=recipe.weight_decay)
    model.train()
    for step in range(steps):
        communicator.status.step = step
        examples = _in_order(np.arange(step * size, (step + 1) * size), len(data), seed)
        mine = _dealt(model, data.lengths[examples], communicator)
        batch = data.batch(examples[mine])
        coordinates = random.Coordinates.of(seed, step, to_device(mine, model.device))
        ddp.zero_grad()
        with random.at(coordinates):
            losses = model.losses(batch.rows.on(model.device), batch.labels)
            (losses.loss * (1.0 / max(1, data.labelled(examples)))).backward()
        scale = clip_scale(global_norm(ddp.partition), _MAX_GRADIENT_NORM)
        optimizer.step(schedule.learning_rate(step), scale)
        advance()
    return steps - optimizer.updates


def _in_order(places: Array, size: int, seed: int) -> Array:
    """Return the examples at `places` of the order of all epochs, each of which permutes `size` examples anew."""
    found = np.empty_like(places)
    for epoch in np.unique(places // size).tolist():
        of_epoch = places // size == epoch
        found[of_epoch] = Permutation(size, seed, epoch).at(places[of_epoch] % size)
    return found


def _dealt(model: Classifier, lengths: Array, communicator: Communicator) -> Array:
    """Return which examples of a step this rank computes, rising; examples have `lengths`."""
    costs = forward_flops_each(model.config, lengths, np.zeros_like(lengths))
    ranks = deal(costs, [1.0] * communicator.size, len(lengths))
    return np.flatnonzero(ranks == communicator.rank)


def predict(model: Classifier, data: Encoded, communicator: Communicator, commonest: int) -> Array:
    """Return the id of the label that the model predicts for each label of `data`: int64 [W].

    A word that is cut off gets the label `commonest`. Ranks share the work, and all get the result. All ranks call
    this.
    """
    predictions = np.zeros(data.bounds[-1], np.int64)
    by_length = np.argsort(data.lengths, kind="stable")
    starts = range(0, len(by_length), _PREDICTED_AT_ONCE)
    with model.evaluating(), communicator.status.phase("evaluating"):
        for start in starts[communicator.rank :: communicator.size]:
            batch = data.batch(by_length[start : start + _PREDICTED_AT_ONCE])
            best = to_host(most_probable(model.scores(batch.rows.on(model.device))))
            predictions[batch.numbers] = best[batch.score_rows]
    communicator.all_reduce(predictions).wait()
    predictions[data.cut_off] = commonest
    return predictions
