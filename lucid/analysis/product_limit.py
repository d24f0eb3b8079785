"""The speed limit that MFU compares with: the rate of a layer's matrix products on this machine."""

from collections.abc import Sequence

import ml_dtypes

from lucid.analysis.product_rate import product_rate
from lucid.backend import CPU, Array, device_of
from lucid.distributed import RankLocation, locate_ranks
from lucid.kernels import threads
from lucid.training.config import RunConfig
from lucid.training.run_on_rank import Run


def product_limit(run: Run) -> float:
    """Return the FLOP/s of the products of an encoder layer, alone and on all ranks at once, summed over ranks.

    If a host has fewer cores than threads, only as many ranks measure as there are cores for; more could do no more
    work. Model FLOPs utilisation (MFU) is the model's FLOP/s in training divided by this limit. Takes less than a
    second for BERT-base at 100 GFLOP/s a thread, and milliseconds for small models. All ranks call this.
    """
    communicator = run.communicator
    measures = run.model.device != CPU or has_cores(locate_ranks(communicator, threads.count()), communicator.rank)
    communicator.barrier()
    rate = 0.0
    if measures:
        rate = encoder_product_rate(run.config, communicator.size, run.ddp.flat.values[:0])
    return communicator.all_reduce_scalar(rate)


def has_cores(locations: Sequence[RankLocation], rank: int) -> bool:
    """Return whether `rank` is among the first ranks of its host whose threads have a core each; one always is."""
    own = locations[rank]
    of_host = [location for location in locations if location.host == own.host]
    cores = sum({location.cpus: location.cores for location in of_host}.values())
    before = [location.threads for location in locations[:rank] if location.host == own.host]
    return not before or sum(before) + own.threads <= cores


def encoder_product_rate(config: RunConfig, ranks: int, like: Array) -> float:
    """Return the FLOP/s of the products of an encoder layer on this rank alone, which is one of `ranks`.

    `like` is a float32 array of the library and the device to measure.
    """
    width, inner = config.model.hidden_size, config.model.intermediate_size
    rows = config.shared_by(ranks).largest_micro_batch * config.data.sequence_length
    shapes = [(3 * width, width), (width, width), (inner, width), (width, inner)]
    if config.train.precision == "bfloat16" and device_of(like) != CPU:
        # On a GPU activations are bfloat16 themselves; on a CPU products round them.
        like = like.astype(ml_dtypes.bfloat16)
    return product_rate(shapes, rows, like)
