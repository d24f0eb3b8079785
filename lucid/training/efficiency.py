"""What a run's speed is compared with: the rate at which this machine's products of linear layers can be had."""

import ml_dtypes

from lucid.backend import CPU, device_of
from lucid.kernels.product_rate import product_rate
from lucid.training.setup import Run


def product_limit(run: Run) -> float:
    """Return the FLOP/s of the products of an encoder layer, alone and on all ranks at once, added up over these.

    Model FLOPs utilisation (MFU) is `models.bert.flops` over the time of the step, as a share of this. All ranks call
    this; it takes less than a second for BERT-base where a thread does 100 GFLOP/s or on a GPU, and milliseconds for
    small models.
    """
    config, train, communicator = run.config.model, run.config.train, run.communicator
    width, inner = config.hidden_size, config.intermediate_size
    sequences = train.global_batch // communicator.size
    rows = min(train.micro_batch or sequences, sequences) * run.config.data.sequence_length
    communicator.barrier()
    shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
    like = run.ddp.flat.values[:0]
    if train.precision == "bfloat16" and device_of(like) != CPU:
        # On a GPU activations are bfloat16, where on the CPU products round them.
        like = like.astype(ml_dtypes.bfloat16)
    rate = product_rate(shapes, rows, like)
    return communicator.all_reduce_scalar(rate)
