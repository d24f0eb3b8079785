"""Times the making of batches alone, on one core: how many sequences a second the data package can feed.

The process is bound to one core; printed are medians of sequences (packed: rows) a second over the turns, by the clock
and by the core's own time, which other work on the machine does not change. Settings take turns. Beside it stands what
training gets of them: the share of slots that are filled, and how many tokens the busiest of 8 ranks with 8 rows each
has, as a multiple of the mean.

    python benchmarks/loader.py [--data CORPUS] [--length 128] [--batch 256] [--turns 5]
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

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


def evenness(sampler: Sampler) -> tuple[float, float]:
    """Return the share of slots that are filled, and the tokens of the busiest of 8 ranks with 8 rows each / mean."""
    masks = np.stack([sampler.batch(64 * step, range(64)).attention_mask for step in range(40)])
    tokens = masks.reshape(40, 8, -1).sum(axis=2)
    return float(masks.mean()), float((tokens.max(axis=1) / tokens.mean(axis=1)).mean())


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
    print(f"batches of {options.batch} x {options.length} on one core")
    print(f"{'':25} sequences/s (of its own time), slots filled, busiest rank")
    for name, turns in rates.items():
        clock, process = (statistics.median(values) for values in zip(*turns, strict=True))
        filled, busiest = evenness(samplers[name])
        print(f"{name:25} {clock:9,.0f} ({process:,.0f}) {filled:7.1%} {busiest:6.3f}")


if __name__ == "__main__":
    main()
