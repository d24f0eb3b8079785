"""Which rank uses which GPU, whether NCCL can connect the GPUs, and how a rank waits for its own.

A rank that the launcher has assigned a GPU sees only that one (`lucid/launch/rank_parent.py --gpus`). Otherwise the
ranks of a host divide its GPUs by their local rank. NCCL needs a GPU for every rank. Without that, or without NCCL,
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
        """Block until all work before it is done."""


@dataclass(frozen=True)
class _RankGPU:
    """The host of a rank, and its GPU's address and version of NCCL."""

    host: str
    address: str
    nccl: str


def device_for(communicator: Communicator, device: str) -> str:
    """Choose this rank's device, and return its name: "cpu", or "cuda:N" for "cuda" or "cuda:N".

    All ranks call this. Raises an agreed `ConfigError` if a rank has no GPU.
    """
    if device == CPU:
        return CPU
    return all_or_none(communicator, partial(use_gpu, device, communicator.local_rank))


def why_not_nccl(communicator: Communicator, device: str) -> str:
    """Return the reason why NCCL cannot connect the ranks' GPUs, or "". This rank's GPU is `device`.

    All ranks call this, and get the same answer.
    """
    gpu = GPUInfo.at(device)
    own = _RankGPU(platform.node(), gpu.address, gpu.nccl)
    gpus = [_RankGPU(**json.loads(text)) for text in gather_texts(communicator, json.dumps(asdict(own)))]
    taken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, other in enumerate(gpus):
        if not other.nccl:
            return f"CuPy finds no NCCL on {other.host} (pip install nvidia-nccl-cu13, or -cu12)"
        if other.nccl != gpus[0].nccl:
            return f"{other.host} has NCCL {other.nccl}, but {gpus[0].host} has {gpus[0].nccl}"
        taken[other.host, other.address].append(rank)
    for (host, _), ranks in taken.items():
        if len(ranks) > 1:
            return f"ranks {', '.join(map(str, ranks))} share one GPU of {host}, and NCCL takes one rank on each"
    return ""


def wait_for_device(communicator: Communicator, event: Awaitable) -> None:
    """Block until this rank's GPU has reached `event`, or has done all work of a stream.

    In a collective between GPUs, the GPUs wait and the host does not. So the host waits for a missing rank only here,
    and this counts as a wait for other ranks, which the watchdog sees.
    """
    with communicator.status.waiting("wait for the GPU", 0, for_ranks=False):
        event.synchronize()
