"""What a run's speed is compared with: the rate at which this machine's products of linear layers can be had."""

from collections.abc import Sequence

import ml_dtypes

from lucid.backend import CPU, Array, device_of
from lucid.distributed import RankLocation, locate_ranks
from lucid.kernels import threads
from lucid.kernels.product_rate import product_rate
from lucid.training.config import RunConfig
from lucid.training.setup import Run


def product_limit(run: Run) -> float:
    """Return the FLOP/s of the products of an encoder layer, alone and on all ranks at once, added up over these.

    On a host with fewer cores than threads only as many ranks are measured as there are cores for, and the others wait:
    all of them together could do no more. Model FLOPs utilisation (MFU) is `models.bert.flops` over the time of the
    step, as a share of this. All ranks call this; it takes less than a second for BERT-base where a thread does 100
    GFLOP/s or on a GPU, and milliseconds for small models.
    """
    communicator = run.communicator
    counts = run.model.device != CPU or has_cores(locate_ranks(communicator, threads.count()), communicator.rank)
    communicator.barrier()
    rate = 0.0
    if counts:
        rate = encoder_product_rate(run.config, communicator.size, run.ddp.flat.values[:0])
    return communicator.all_reduce_scalar(rate)


def has_cores(locations: Sequence[RankLocation], rank: int) -> bool:
    """Return whether `rank` is among the first of its host that have cores for all their threads; one always is."""
    own = locations[rank]
    of_host = [location for location in locations if location.host == own.host]
    cores = sum({location.cpus: location.cores for location in of_host}.values())
    before = [location.threads for location in locations[:rank] if location.host == own.host]
    return not before or sum(before) + own.threads <= cores


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
