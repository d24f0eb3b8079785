"""lucid's side on a card. Started by `benchmarks/gpu_step.py`: python -m card.lucid_side WORKLOAD FOLDER."""

import statistics
import sys
from collections.abc import Callable

import ml_dtypes
import numpy as np
from card.keeping import choices_of_its_own
from card.serving import serve
from card.training_step import TrainingStep
from card.workloads import Workload

from lucid import kernels
from lucid.backend import Array, gpu_library, gpu_software, synchronise
from lucid.distributed import connect
from lucid.gpu_async import HostCopy
from lucid.models import BERTForPreTraining

# Sides of the product, and bytes of the copy, that say what the card can do. The tiny model is for machines without.
PRODUCT_SIDE, COPY_BYTES = 8192, 2**30
TINY_PRODUCT_SIDE, TINY_COPY_BYTES = 64, 2**16
REPEATS, GROUPS = 20, 5


class LucidSide:
    """Trains with `device: cuda`, `precision: bfloat16` and CUDA graphs."""

    def __init__(self, workload: Workload, folder: str) -> None:
        self.communicator = connect("single", "cuda")
        self.free_at_start = gpu_library().cuda.runtime.memGetInfo()[0]
        self.tiny = workload.model == "tiny"
        model = BERTForPreTraining.from_pretrained(folder)
        self.training_step = TrainingStep(model, self.communicator, workload, workload.batch(folder))
        self.outcomes: list[HostCopy] = []

    def step(self) -> None:
        self.outcomes.append(self.training_step.take())

    def finish(self) -> list[tuple[float, float]]:
        synchronise()
        found = [self.training_step.loss_and_norm(outcome.values) for outcome in self.outcomes]
        self.outcomes.clear()
        return found

    def facts(self) -> dict[str, str]:
        return gpu_software() or {}

    def held_bytes(self) -> int:
        return self.free_at_start - gpu_library().cuda.runtime.memGetInfo()[0]

    def rates(self) -> dict[str, float]:
        from lucid.kernels.cuda import gemm

        cupy = gpu_library()
        side, size = (TINY_PRODUCT_SIDE, TINY_COPY_BYTES) if self.tiny else (PRODUCT_SIDE, COPY_BYTES)
        x, y, z = (normal(side) for _ in range(3))
        source, target = cupy.zeros(size, np.uint8), cupy.zeros(size, np.uint8)
        with kernels.timed_products():
            product = seconds_of(lambda: gemm.linear(x, y, None, z))
        return {
            "product": 2 * side**3 / product,
            "copy": 2 * size / seconds_of(lambda: target.data.copy_from_device_async(source.data, size)),
        }


def normal(side: int) -> Array:
    """Return bfloat16 [side, side] on the card, of random numbers: with zeros a product takes less power and time."""
    numbers = np.random.default_rng(0).standard_normal((side, side), np.float32).astype(ml_dtypes.bfloat16)
    return gpu_library().asarray(numbers.view(np.uint16)).view(numbers.dtype)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the median of how long one of many takes, of `GROUPS` groups, by events of the card."""
    cuda = gpu_library().cuda
    for _ in range(3):
        work()
    found = []
    for _ in range(GROUPS):
        started, ended = cuda.Event(), cuda.Event()
        started.record()
        for _ in range(REPEATS):
            work()
        ended.record()
        ended.synchronize()
        found.append(cuda.get_elapsed_time(started, ended) / 1000 / REPEATS)
    return statistics.median(found)


if __name__ == "__main__":
    workload = Workload.parsed(sys.argv[1])
    with choices_of_its_own(workload.model == "tiny"):
        serve(lambda: LucidSide(workload, *sys.argv[2:]))
