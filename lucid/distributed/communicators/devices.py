"""Which GPU is whose, what carries gradients between them, and how a rank waits for its own.

Ranks that a launcher has given one GPU each see that one alone (`lucid/launch/rank_parent.py --gpus`); others share
out those of their host by their place there. NCCL needs a GPU for every rank; where there is none, or no NCCL,
gradients go through the host's memory.
"""

import json
import platform
from collections import defaultdict
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from lucid.backend import CPU, GPUInfo, use_gpu
from lucid.distributed.communicators.agreement import all_or_none, gather_texts
from lucid.distributed.communicators.communicator import Communicator


class Awaitable(Protocol):
    """An event or a stream of CUDA."""

    def synchronize(self) -> Any:
        """Block until all before it is done."""


@dataclass(frozen=True)
class _Seat:
    """The GPU of a rank, as the others get to know it."""

    host: str
    address: str
    nccl: str


def device_for(communicator: Communicator, device: str) -> str:
    """Choose this rank's device, and return its name: "cpu", or "cuda:N" for "cuda" or "cuda:N".

    All ranks call this; an agreed `ConfigError` says which one has no GPU.
    """
    if device == CPU:
        return CPU
    return all_or_none(communicator, partial(use_gpu, device, communicator.local_rank))


def why_not_nccl(communicator: Communicator, device: str) -> str:
    """Return what keeps NCCL from connecting the ranks' GPUs, of which this one has `device`; "" if nothing does.

    All ranks call this, and get the same answer.
    """
    gpu = GPUInfo.at(device)
    own = _Seat(platform.node(), gpu.address, gpu.nccl)
    seats = [_Seat(**json.loads(text)) for text in gather_texts(communicator, json.dumps(asdict(own)))]
    taken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, seat in enumerate(seats):
        if not seat.nccl:
            return f"CuPy finds no NCCL on {seat.host} (pip install nvidia-nccl-cu13, or -cu12)"
        if seat.nccl != seats[0].nccl:
            return f"{seat.host} has NCCL {seat.nccl}, but {seats[0].host} has {seats[0].nccl}"
        taken[seat.host, seat.address].append(rank)
    for (host, _), ranks in taken.items():
        if len(ranks) > 1:
            return f"ranks {', '.join(map(str, ranks))} share one GPU of {host}, and NCCL takes one rank on each"
    return ""


def wait_for_device(communicator: Communicator, event: Awaitable) -> None:
    """Block until `event` has come, an event or a stream of this rank's GPU.

    A rank that is missing in a collective shows here: a collective between GPUs lets them wait, not the host. So this
    counts as a wait for the others, and the watchdog sees it.
    """
    with communicator.whereabouts.waiting("wait for the GPU", 0):
        event.synchronize()
