"""Times the exact reduction of gradients against the fast one, on several ranks.

It first times the sum over ranks alone, of a buffer as large as the model's gradients; then whole steps of
`--micro-batches` micro-batches a rank. The two reductions take turns. The output has medians with minimum and maximum,
and the median of the ratios of each turn.

    OMP_NUM_THREADS=1 mpiexec -n 2 python benchmarks/reductions.py [--backend mpi] [--size small|base]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from made_up import SIZES, make_batch

import lucid
from lucid import random
from lucid.distributed import Communicator, DistributedDataParallel, choose, session
from lucid.distributed.parallel import exact
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.optim import AdamW, clip_scale, global_norm

Sides = dict[str, Callable[[], None]]


def sums(communicator: Communicator, count: int) -> Sides:
    """Return both ways to sum an array of `count` elements over ranks, in pieces of 25 MB."""
    array, piece = communicator.allocate(count, np.float32), 25 * 2**18
    incoming = np.empty(piece // 2 + 1, np.float32)

    def fast() -> None:
        works = [communicator.all_reduce(array[start : start + piece]) for start in range(0, count, piece)]
        for work in works:
            work.wait()

    def exactly() -> None:
        if communicator.sums_along_tree(array):
            fast()
            return
        for start in range(0, count, piece):
            exact.all_reduce(communicator, array[start : start + piece], incoming)

    return {"fast": fast, "exact": exactly}


def steps(communicator: Communicator, config: BERTConfig, options: argparse.Namespace) -> Sides:
    """Return both kinds of step, each with its own model."""
    batch = make_batch(config, options.batch, options.length)

    def make(exact_micro_batches: int | None) -> Callable[[], None]:
        lucid.manual_seed(0)
        ddp = DistributedDataParallel(BERTForPreTraining(config), communicator, exact_micro_batches=exact_micro_batches)
        optimizer = AdamW(ddp.partition)

        def backward(number: int) -> None:
            samples = np.arange(options.batch) + number * options.batch
            with random.at(random.Coordinates.of(0, optimizer.updates, samples)):
                ddp.module.get_loss(**batch).backward()

        def step() -> None:
            ddp.zero_grad()
            for number in range(options.micro_batches - 1):
                with ddp.accumulate():
                    backward(number)
            backward(options.micro_batches - 1)
            optimizer.step(1e-4, clip_scale(global_norm(ddp.partition), 1.0))

        return step

    return {"fast": make(None), "exact": make(options.micro_batches)}


def compare(communicator: Communicator, title: str, sides: Sides, turns: int) -> None:
    """Run the two sides in turn, and print their times on the first rank."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, action in sides.items():
            communicator.barrier()
            began = time.perf_counter()
            action()
            communicator.barrier()
            if turn:  # the first touches fresh memory
                seconds[name].append(time.perf_counter() - began)
    if communicator.rank == 0:
        print(title)
        for name, values in seconds.items():
            least, median, most = (1e3 * value for value in (min(values), statistics.median(values), max(values)))
            print(f"  {name:6} {median:9.1f} ms  ({least:.1f} to {most:.1f})")
        ratios = [slow / quick for slow, quick in zip(seconds["exact"], seconds["fast"], strict=True)]
        print(f"  exact / fast {statistics.median(ratios):.2f}  ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4, help="sequences a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=4, help="of each rank")
    parser.add_argument("--backend", choices=["mpi", "shared_memory"], default="shared_memory")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    config = BERTConfig(**SIZES[options.size])
    with session() as group:
        communicator = choose(group, options.backend)
        sides = steps(communicator, config, options)
        count = sum(parameter.size for parameter in BERTForPreTraining(config).parameters())
        ranks = f"{communicator.size} ranks, {options.size}"
        compare(communicator, f"{ranks}: sum of {count * 4 / 1e6:.0f} MB", sums(communicator, count), options.turns)
        micro_batches = f"{options.micro_batches} micro-batches of {options.batch} x {options.length} a rank"
        compare(communicator, f"{ranks}: step of {micro_batches}", sides, options.turns)


if __name__ == "__main__":
    main()
