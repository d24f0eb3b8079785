"""What a run's speed is compared with: the rate at which this machine's products of linear layers can be had."""

import ml_dtypes

from lucid.backend import CPU, Array, device_of
from lucid.kernels.product_rate import product_rate
from lucid.training.config import RunConfig
from lucid.training.setup import Run


def product_limit(run: Run) -> float:
    """Return the FLOP/s of the products of an encoder layer, alone and on all ranks at once, added up over these.

    Model FLOPs utilisation (MFU) is `models.bert.flops` over the time of the step, as a share of this. All ranks call
    this; it takes less than a second for BERT-base where a thread does 100 GFLOP/s or on a GPU, and milliseconds for
    small models.
    """
    run.communicator.barrier()
    rate = encoder_product_rate(run.config, run.communicator.size, run.ddp.flat.values[:0])
    return run.communicator.all_reduce_scalar(rate)


def encoder_product_rate(config: RunConfig, ranks: int, like: Array) -> float:
    """Return the FLOP/s of the products of an encoder layer on this rank, one of `ranks`, alone.

    Arrays are of the library and on the device of `like`, float32.
    """
    width, inner = config.model.hidden_size, config.model.intermediate_size
    rows = config.sequences_at_once(ranks) * config.data.sequence_length
    shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
    if config.train.precision == "bfloat16" and device_of(like) != CPU:
        # On a GPU activations are bfloat16, where on the CPU products round them.
        like = like.astype(ml_dtypes.bfloat16)
    return product_rate(shapes, rows, like)
