"""Measures time and memory of training with a sharded optimizer, and with a whole optimizer on each rank.

Steps of both take turns. The output has the medians of backward with the sum over ranks, of clipping with the update,
and of gathering the moments for a checkpoint, and the median of the ratios of whole steps. With `--side` only one of
them runs, and the output also has its memory on the largest rank and on all: the proportional set size, which counts
memory that ranks share once.

    OMP_NUM_THREADS=1 mpiexec -n 2 python benchmarks/sharded.py [--size small|base] [--backend mpi]
    OMP_NUM_THREADS=1 mpiexec -n 2 python benchmarks/sharded.py --side sharded
    OMP_NUM_THREADS=1 mpiexec -n 2 python benchmarks/sharded.py --side replicated
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from made_up import SIZES, make_batch

import lucid
from lucid import random
from lucid.backend import Array
from lucid.distributed import Communicator, DistributedDataParallel, choose, session
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.optim import LAMB, AdamW, clip_scale, global_norm

OPTIMIZERS = {"adamw": AdamW, "lamb": LAMB}


class Side:
    """A model with its optimizer, and the times of its parts, in seconds."""

    def __init__(self, communicator: Communicator, options: argparse.Namespace, sharded: bool) -> None:
        config = BERTConfig(**SIZES[options.size])
        lucid.manual_seed(0)
        self.communicator = communicator
        self.batch, self.samples = make_batch(config, options.batch, options.length), np.arange(options.batch)
        self.ddp = DistributedDataParallel(BERTForPreTraining(config), communicator, sharded=sharded)
        self.optimizer = OPTIMIZERS[options.optimizer](self.ddp.partition)
        self.kept: dict[str, Array] = {}
        self.seconds: dict[str, list[float]] = {"backward": [], "update": [], "gather": []}

    def step(self) -> None:
        self.timed("backward", self.backward)
        self.timed("update", self.update)

    def backward(self) -> None:
        self.ddp.zero_grad()
        with random.at(random.Coordinates.of(0, self.optimizer.updates, self.samples)):
            self.ddp.module.get_loss(**self.batch).backward()

    def update(self) -> None:
        self.optimizer.step(1e-4, clip_scale(global_norm(self.ddp.partition), 1.0))

    def gather(self) -> None:
        if self.communicator.rank == 0 or not self.ddp.partition.is_whole:
            self.optimizer.moments(self.kept)

    def timed(self, part: str, action: Callable[[], None]) -> None:
        self.communicator.barrier()
        began = time.perf_counter()
        action()
        self.communicator.barrier()
        self.seconds[part].append(time.perf_counter() - began)


def proportional_set_size() -> int:
    """Return the bytes of memory of this process. Each of n processes that share a page counts 1/n of it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def report_memory(communicator: Communicator, name: str, before: str) -> None:
    sizes = np.zeros(communicator.size)
    sizes[communicator.rank] = proportional_set_size()
    communicator.all_reduce(sizes).wait()
    if communicator.rank == 0:
        print(f"{name}: {sizes.max() / 1e9:.2f} GB a rank, {sizes.sum() / 1e9:.2f} GB in all, {before}", flush=True)


def report_times(sides: dict[str, Side]) -> None:
    totals = {}
    for name, side in sides.items():
        backward, update, gather = (side.seconds[part][1:] for part in ("backward", "update", "gather"))
        totals[name] = [one + other for one, other in zip(backward, update, strict=True)]
        print(
            f"{name:10} backward and sum {spread(backward)}, norm and update {spread(update)}, "
            f"moments gathered {spread(gather)}"
        )
    if len(totals) > 1:
        ratios = [one / other for one, other in zip(totals["sharded"], totals["replicated"], strict=True)]
        print(f"a step, sharded / replicated: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def spread(seconds: list[float]) -> str:
    least, median, most = (1e3 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"{median:.0f} ms ({least:.0f} to {most:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=["replicated", "sharded"], help="one alone, and its memory")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2, help="sequences a rank")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--backend", choices=["mpi", "shared_memory"], default="shared_memory")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    with session() as group:
        communicator = choose(group, options.backend)
        names = [options.side] if options.side else ["replicated", "sharded"]
        sides = {name: Side(communicator, options, name == "sharded") for name in names}
        if group.rank == 0:
            print(f"{group.size} ranks, {options.size}, {options.optimizer}, {options.batch} x {options.length} a rank")
        for turn in range(options.turns + 1):  # the first touches fresh memory
            for side in sides.values():
                side.step()
            if options.side and turn == options.turns:
                report_memory(communicator, options.side, "without checkpoints")
        for side in sides.values():
            for _ in range(options.turns + 1):
                side.timed("gather", side.gather)
        if options.side:
            report_memory(communicator, options.side, "with the copy that checkpoints are written from")
        if group.rank == 0:
            report_times(sides)


if __name__ == "__main__":
    main()
