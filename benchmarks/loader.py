"""Times the making of batches alone, on one core: how many sequences a second the data room can feed.

The process is bound to one core; printed are medians of sequences (packed: rows) a second over the turns, by the clock
and by the core's own time, which other work on the machine does not change, and how many of the slots are tokens.
Settings take turns.

    python benchmarks/loader.py [--data CORPUS] [--length 128] [--batch 256] [--turns 5]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from lucid.data import Corpus, Loader, Sampler, SamplerSettings
from lucid.preparation import PYTHON_DOCS, prepare

SETTINGS = {
    "pairs": {},
    "pairs, whole words": {"whole_word_mask": True},
    "pairs, packed": {"packing": True},
    "one segment": {"nsp": False, "short_sequence_probability": 0.0},
    "one segment, whole words": {"nsp": False, "short_sequence_probability": 0.0, "whole_word_mask": True},
}


def sequences(sampler: Sampler, batch: int, seconds: float, workers: int) -> tuple[float, float]:
    """Return sequences a second, by the clock and by the process's time, over batches that take `seconds` or more."""

    def make(step: int):
        return sampler.batch(step * batch, range(batch))

    made = 0
    with Loader(make, 0, 1 << 30, workers, prefetch=4) as loader:
        next(loader)
        clock, process = time.perf_counter(), time.process_time()
        while time.perf_counter() - clock < seconds:
            made += len(next(loader).samples)
        clock, process = time.perf_counter() - clock, time.process_time() - process
    return made / clock, made / process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a prepared corpus; default: the documentation of Python, prepared")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="least time of a turn of one setting")
    parser.add_argument("--workers", type=int, default=0, help="threads that make batches, on the one core")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            options.data = Path(folder, "python-docs")
            prepare([PYTHON_DOCS], options.data, vocab_size=30522)
        corpus = Corpus.open(options.data)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        samplers = {
            name: Sampler(corpus, SamplerSettings(options.length, **kind), 0) for name, kind in SETTINGS.items()
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
        for _ in range(options.turns):
            for name, sampler in samplers.items():
                rates[name].append(sequences(sampler, options.batch, options.seconds, options.workers))
    filled = {name: sampler.batch(0, range(2048)).attention_mask.mean() for name, sampler in samplers.items()}
    print(f"batches of {options.batch} x {options.length}, one core: sequences/s (of its own time), slots filled")
    for name, turns in rates.items():
        clock, process = (statistics.median(values) for values in zip(*turns, strict=True))
        print(f"{name:25} {clock:9,.0f} ({process:,.0f}) {filled[name]:7.1%}")


if __name__ == "__main__":
    main()
