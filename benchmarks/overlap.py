"""Times the sum of gradients over two hosts relative to backward: alone, after backward, and during it.

The two hosts are network namespaces of this machine, joined by a link of limited rate; this needs root. Each host has
one rank with one thread. Four measurements take turns, with the same model, batch and buckets:

- backward: a backward pass, without communication;
- communication: the sums of the buckets, without computation;
- after: backward, and then the sums of the buckets;
- during: the sum of each bucket starts when it is ready, as in training.

The hidden part of the communication does not make a step longer: it is 1 - (both - backward) / communication, where
"both" is "after" or "during". It cannot exceed backward / communication. On a busy machine the time of backward varies
by more than the whole communication takes. So the benchmark also prints how long a rank waits for its sums after
backward, and the hidden part by this measure: 1 - waiting / communication. This measure does not count the time that
the thread for the sums takes from backward. All figures are medians over turns, with minimum and maximum.

    python benchmarks/overlap.py [--size medium|base] [--batch 16] [--rates 1000 200] [--wire-dtype bfloat16]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import made_up
import numpy as np

import lucid
from lucid import kernels, random
from lucid.distributed import Communicator, DistributedDataParallel, Work, choose, session
from lucid.models import BERTConfig, BERTForPreTraining

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hosts import LINK, Hosts, ip
from launching import FEW_CORES

SIZES = {
    **made_up.SIZES,
    "medium": {"vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4,
               "intermediate_size": 1024},
}  # fmt: skip
BOTH = ("after", "during")


class Timed:
    """A communicator that adds up the seconds spent waiting for sums."""

    def __init__(self, communicator: Communicator) -> None:
        self.communicator, self.waited = communicator, 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.communicator, name)

    def all_reduce(self, array: np.ndarray) -> Work:
        return TimedWork(self, self.communicator.all_reduce(array))


class TimedWork:
    def __init__(self, communicator: Timed, work: Work) -> None:
        self.communicator, self.work = communicator, work

    def wait(self) -> None:
        began = time.perf_counter()
        self.work.wait()
        self.communicator.waited += time.perf_counter() - began


def ways(communicator: Timed, options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Return the four measurements: each runs its step, and returns its seconds without the forward pass."""
    config = BERTConfig(**SIZES[options.size])
    batch = made_up.make_batch(config, options.batch, options.length)
    lucid.manual_seed(0)
    ddp = DistributedDataParallel(BERTForPreTraining(config), communicator, options.bucket_megabytes)
    gradients, elements = ddp.flat.gradients, int(options.bucket_megabytes * 2**18)

    def communicate() -> None:
        starts = range(0, len(gradients), elements)
        works = [communicator.all_reduce(gradients[start : start + elements]) for start in starts]
        for work in works:
            work.wait()

    def timed(action: Callable[[], None]) -> float:
        communicator.barrier()
        began = time.perf_counter()
        action()
        communicator.barrier()
        return time.perf_counter() - began

    def step(during: bool, after: bool) -> float:
        def backward() -> None:
            with nullcontext() if during else ddp.accumulate():
                loss.backward()
            if after:
                communicate()

        ddp.zero_grad()
        with random.at(random.Coordinates.of(0, 0, np.arange(options.batch))):
            loss = ddp.module.get_loss(**batch)
            return timed(backward)

    return {
        "backward": lambda: step(during=False, after=False),
        "communication": lambda: timed(communicate),
        "after": lambda: step(during=False, after=True),
        "during": lambda: step(during=True, after=False),
    }


def measure(options: argparse.Namespace) -> None:
    """Run the measurements in turn on each rank, and print the results on the first."""
    with session() as group:
        kernels.set_precision(options.precision)
        communicator = Timed(choose(group, "auto", options.wire_dtype))
        sides = ways(communicator, options)
        times: dict[str, list[float]] = {name: [] for name in (*sides, *(f"waiting {name}" for name in BOTH))}
        for turn in range(options.turns + 1):
            for name, action in sides.items():
                communicator.waited = 0.0
                seconds = action()
                if turn:  # the first touches fresh memory
                    times[name].append(seconds)
                    if name in BOTH:
                        times[f"waiting {name}"].append(communicator.waited)
        if group.rank == 0:
            show(times)


def show(times: dict[str, list[float]]) -> None:
    for name, values in times.items():
        print(f"  {name:16} {1e3 * statistics.median(values):7.0f} ms  {spread([1e3 * value for value in values])}")
    turns = [dict(zip(times, values, strict=True)) for values in zip(*times.values(), strict=True)]
    for both in BOTH:
        longer = [100 * (1 - (turn[both] - turn["backward"]) / turn["communication"]) for turn in turns]
        waited = [100 * (1 - turn[f"waiting {both}"] / turn["communication"]) for turn in turns]
        print(f"  hidden {both:7} {statistics.median(longer):9.0f} %   {spread(longer)}", end="; by waiting ")
        print(f"{statistics.median(waited):.0f} %  {spread(waited)}", flush=True)


def spread(values: list[float]) -> str:
    return f"({min(values):.0f} to {max(values):.0f})"


def shape(hosts: Hosts, megabits: float) -> None:
    """Limit the link to this many million bits a second, each way."""
    for namespace in hosts.namespaces:
        limits = ["rate", f"{megabits}mbit", "burst", "256kb", "latency", "100ms"]
        ip("netns", "exec", namespace, "tc", "qdisc", "replace", "dev", LINK, "root", "tbf", *limits)


def run_on_two_hosts(options: argparse.Namespace) -> None:
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    if launcher is None:
        sys.exit("there is no mpiexec: install lucid[mpich] into this environment")
    with tempfile.TemporaryDirectory() as folder:
        hosts = Hosts(Path(folder))
        try:
            hosts.make()
            hosts.join()
            for rate in options.rates:
                shape(hosts, rate)
                step = f"{options.size}, {options.batch} x {options.length} a rank in {options.precision}"
                buckets = f"buckets of {options.bucket_megabytes:g} MiB as {options.wire_dtype}"
                print(f"{step}; {rate:g} Mbit/s, {buckets}", flush=True)
                before = hosts.bytes_sent()
                command = [*hosts.mpiexec(launcher, 1), sys.executable, "-m", "mpi4py", *sys.argv, "--on-a-rank"]
                environment = os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK}
                subprocess.run(command, env=environment, check=True, timeout=options.timeout)
                sums = 3 * (options.turns + 1)  # and the weights, once
                print(f"  {(hosts.bytes_sent() - before) / sums / 1e6:.1f} MB each way over the link for each sum")
        finally:
            hosts.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="sequences a rank")
    parser.add_argument("--rates", type=float, nargs="+", default=[1000, 200], help="of the link, in Mbit/s")
    parser.add_argument("--bucket-megabytes", type=float, default=2.0)
    parser.add_argument("--wire-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--timeout", type=float, default=600, help="seconds at each rate")
    parser.add_argument("--on-a-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.on_a_rank:
        measure(options)
    else:
        run_on_two_hosts(options)


if __name__ == "__main__":
    main()
