"""Times the sum of an array over the ranks of one machine: MPI's all-reduce against the sum in shared memory.

The two take turns. The output has medians with minimum and maximum, in ms, and the median of the ratios of each turn.
"reduce_scatter" does not write the sum back to all ranks; its ratio is to MPI's.

    OMP_NUM_THREADS=1 mpiexec -n 2 python -m mpi4py benchmarks/all_reduce.py [--turns 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from lucid.distributed import Communicator, choose, session

MEGABYTES = (4, 25, 100, 440)


def sides(plain: Communicator, shared: Communicator, count: int) -> dict[str, Callable[[], None]]:
    """Return the four ways to sum float32 [count], each with its own memory."""
    actions: dict[str, Callable[[], None]] = {}
    for name, communicator in (("MPI", plain), ("shared memory", shared)):
        array = communicator.allocate(count, np.float32)
        bounds = [count * rank // communicator.size for rank in range(communicator.size + 1)]

        def all_reduce(communicator: Communicator = communicator, array: np.ndarray = array) -> None:
            communicator.all_reduce(array).wait()

        def reduce_scatter(
            communicator: Communicator = communicator, array: np.ndarray = array, bounds: list[int] = bounds
        ) -> None:
            communicator.reduce_scatter(array, bounds).wait()

        actions[f"all_reduce, {name}"] = all_reduce
        actions[f"reduce_scatter, {name}"] = reduce_scatter
    return actions


def measure(communicator: Communicator, actions: dict[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Return the milliseconds of each turn of each action, until the last rank is done."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(turns + 1):
        for name, action in actions.items():
            communicator.barrier()
            began = time.perf_counter()
            action()
            communicator.barrier()
            if turn:  # the first touches fresh memory
                times[name].append(1e3 * (time.perf_counter() - began))
    return times


def show(times: dict[str, list[float]]) -> None:
    for name, values in times.items():
        print(f"  {name:29} {statistics.median(values):8.2f}  ({min(values):.2f} to {max(values):.2f})")
    for collective in ("all_reduce", "reduce_scatter"):
        pairs = zip(times[f"{collective}, MPI"], times[f"{collective}, shared memory"], strict=True)
        ratios = [slow / quick for slow, quick in pairs]
        print(
            f"  {collective}: {statistics.median(ratios):.1f} times as fast  ({min(ratios):.1f} to {max(ratios):.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    with session("mpi") as group:
        shared = choose(group, "shared_memory")
        for megabytes in MEGABYTES:
            count = megabytes * 250_000 // group.size * group.size
            times = measure(group, sides(group, shared, count), options.turns)
            if group.rank == 0:
                print(f"{group.size} ranks, {megabytes} MB of float32", flush=True)
                show(times)


if __name__ == "__main__":
    main()
