"""`train.micro_batch: auto`: as many sequences at once as memory has room for, and no more than computing gains from.

The estimate of memory chooses the number before anything is computed, the same on all ranks. `trial.py` tries it.
"""

from bisect import bisect_right

import numpy as np

from lucid.backend import CPU, gpu_library
from lucid.distributed import Communicator, gather_rows
from lucid.launch.limits import HostMemory
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.config import RunConfig, from_dict
from lucid.training.config.sections import AUTO
from lucid.training.estimates import memory

# A rank takes this part of the free memory at most: the estimate has an error, and others use the machine, too.
_PART_OF_FREE = 0.8
# Tokens in a micro-batch beyond which a CPU gains little (docs/recipes.md).
_ENOUGH_TOKENS = 4096


def with_chosen_micro_batch(
    config: RunConfig, communicator: Communicator, newest: TrainingState | None = None
) -> RunConfig:
    """Return the settings with a number in place of `auto`, the smallest that any rank chooses. All ranks call this.

    Each rank counts itself and the ranks before it, so the last one of a host counts all. The first rank of a run that
    resumes gives its `newest` state: on as many ranks as before, the number stays if memory has room for it, so that
    the run continues with the same bits.
    """
    if config.train.micro_batch != AUTO:
        return config
    if communicator.device == CPU:
        free, ranks = HostMemory.read().free, communicator.local_rank + 1
    else:
        free, ranks = gpu_library().cuda.runtime.memGetInfo()[0], 1
    chosen = chosen_micro_batch(config, communicator.size, free, ranks, communicator.node_count)
    before = _number_before(config, communicator.size, newest) if newest else None
    return config.with_micro_batch(least(communicator, chosen if before is None else min(before, chosen)))


def _number_before(config: RunConfig, size: int, newest: TrainingState) -> int | None:
    """Return the number with which a run trained so far, None if `size` or other settings that matter differ."""
    before = from_dict(newest.config)
    number = before.train.micro_batch_size
    if number is None or newest.ranks != size or before.train.device != config.train.device:
        return None
    same = before.sample_settings == config.with_micro_batch(number).sample_settings
    return number if same else None


def chosen_micro_batch(config: RunConfig, size: int, free: int, ranks: int = 1, nodes: int = 1) -> int:
    """Return how many sequences each of `size` ranks should compute at once, where `ranks` of them have `free` bytes.

    The ranks are on so many `nodes`. `free` is memory of a host or, if ranks compute on GPUs, of one GPU. Where the
    estimate has no room for even one sequence, the number is 1.
    """
    allowed, is_on_cpu = int(_PART_OF_FREE * free), config.train.device == "cpu"

    def too_large(samples: int) -> bool:
        need = memory(config.with_micro_batch(samples), size, nodes=nodes)
        return need.ranks_within(allowed) < ranks if is_on_cpu else need.of_rank > allowed

    local_batch = config.shared_by(size).local_batch
    most = max(1, min(local_batch, _ENOUGH_TOKENS // config.data.sequence_length)) if is_on_cpu else local_batch
    largest = max(1, bisect_right(range(1, most + 1), False, key=too_large))
    # Equal parts take less memory than large ones and a small rest.
    return -(-local_batch // -(-local_batch // largest))


def least(communicator: Communicator, number: int) -> int:
    """Return the smallest of the numbers that the ranks give. All ranks call this."""
    return int(gather_rows(communicator, np.array(number)).min())
