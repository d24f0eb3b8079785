"""Measures what dealing rows by length and by speed gains over adjacent rows on each rank.

Without mpiexec it computes, for several numbers of ranks, the FLOPs of the busiest rank divided by the mean, as rows
were dealt by place and as they are dealt by length: the mean over the steps, and the largest in brackets.

Under mpiexec it times steps of one run that is dealt in each way, in turns, and prints the medians and the ratios to
dealing by place of each turn. With --slow N, N processes that compute without end share the core of the last rank.

    python benchmarks/dealing.py [--data CORPUS] [--length 512]
    mpiexec -n 2 python -m mpi4py benchmarks/dealing.py [--data CORPUS] [--length 512] [--batch 16] [--slow 1]
                                                        [--steps 10] [--turns 9]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from lucid.data import Corpus, Sampler, SamplerSettings
from lucid.distributed import Communicator, StopRequest, announced, session
from lucid.models import BERTConfig
from lucid.models.bert.flops import forward_flops_each
from lucid.preparation import PYTHON_DOCS, prepare
from lucid.training.config import NEVER, RunConfig, load
from lucid.training.dealing import deal
from lucid.training.numerical_environment import limit_threads
from lucid.training.run_on_rank import Run
from lucid.training.setup import communicator_of, open_run
from lucid.training.trainer import Trainer

# Ranks, and rows on each.
SHARES = (2, 8), (2, 16), (3, 8), (8, 8), (8, 32), (64, 4), (64, 32)
SAMPLES = 16_384
MODEL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}


def simulate(corpus: Path, length: int) -> None:
    sampler, config = Sampler(Corpus.open(corpus), SamplerSettings(sequence_length=length), seed=0), BERTConfig()

    def costs(lengths: np.ndarray) -> np.ndarray:
        return forward_flops_each(config, lengths, np.rint(0.15 * lengths).astype(np.int64))

    print("ranks x rows   by place       by length")
    for size, rows in SHARES:
        batch, ratios = size * rows, []
        for first in range(0, max(batch, SAMPLES - batch + 1), batch):
            true = costs(sampler.batch(first, range(batch)).attention_mask.sum(axis=1))
            dealt = deal(costs(sampler.expected_lengths(first + np.arange(batch))), [1.0] * size, rows)
            loads = [np.bincount(ranks, true) for ranks in (np.arange(batch) // rows, dealt)]
            ratios.append([load.max() / load.mean() for load in loads])
        shown = [f"{mean:.3f} ({most:.2f})" for mean, most in zip(np.mean(ratios, 0), np.max(ratios, 0), strict=True)]
        print(f"{size:5} x {rows:<5} ", *(f"{text:14}" for text in shown))


def settings(corpus: Path, options: argparse.Namespace) -> RunConfig:
    content = {
        "run_folder": f"{corpus}-run",
        "model": {**MODEL, "vocab_size": Corpus.open(corpus).vocab_size, "max_position_embeddings": options.length},
        "data": {"path": str(corpus), "sequence_length": options.length},
        "train": {"steps": NEVER, "global_batch": options.batch, "micro_batch": 4, "threads_per_rank": 1}
        | {"log_every": 5, "checkpoint_every": NEVER, "check_replicas_every": NEVER},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(content, file)
        file.flush()
        return load(Path(file.name), [])


def side(run: Run, balance: str) -> Callable[[int], None]:
    """Return a function that takes steps of a run that is dealt by "place", "length" or "speed"."""
    chosen = "speed" if balance == "speed" else "length"
    config = run.config.model_copy(update={"train": run.config.train.model_copy(update={"balance": chosen})})
    trainer = Trainer(replace(run, config=config))
    trainer._dealer._by_place |= balance == "place"
    batches = trainer.batches(NEVER)
    return lambda steps: trainer.loop(islice(batches, steps), StopRequest()) and None


@contextmanager
def busy_core(count: int) -> Iterator[None]:
    """Let `count` processes share the core of this one."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def timed(communicator: Communicator, options: argparse.Namespace, run: Run) -> None:
    sides = {balance: side(run, balance) for balance in ("place", "length", "speed")}
    seconds: dict[str, list[float]] = {balance: [] for balance in sides}
    slowed = options.slow if communicator.rank == communicator.size - 1 else 0
    with busy_core(slowed):
        for steps in sides.values():
            steps(20)  # to measure speeds
        for _ in range(options.turns):
            for balance, steps in sides.items():
                communicator.barrier()
                began = time.perf_counter()
                steps(options.steps)
                communicator.barrier()
                seconds[balance].append((time.perf_counter() - began) / options.steps)
    if communicator.rank:
        return
    busy = f"{options.slow} busy processes on the core of the last rank"
    print(f"{communicator.size} ranks, {options.batch} rows of {options.length} tokens; {busy}")
    for balance, times in seconds.items():
        ratios = [mine / other for mine, other in zip(times, seconds["place"], strict=True)]
        print(
            f"by {balance:7} {statistics.median(times) * 1e3:8.1f} ms a step; by place: "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared corpus; default: the documentation of Python, prepared")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--slow", type=int, default=0)
    options = parser.parse_args()
    if announced() is None:
        with tempfile.TemporaryDirectory() as folder:
            if options.data is None:
                options.data = Path(folder, "python-docs")
                prepare([PYTHON_DOCS], options.data, vocab_size=4096)
            simulate(options.data, options.length)
        return
    if options.data is None:
        parser.error("under mpiexec, give a corpus: --data")
    with session() as group:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[group.rank % len(cores)]})
        limit_threads(1)
        config = settings(options.data, options)
        communicator = communicator_of(config, group)
        timed(communicator, options, open_run(config, communicator))


if __name__ == "__main__":
    main()
