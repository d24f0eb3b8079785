"""Times a training step on rows without padding beside the same step on all slots of the batch.

Forward, backward, clipping and AdamW on one process, dropout on, on batches of sequences whose lengths are drawn evenly
from 1/16 of the length up to all of it, so that about half of the slots are padding; or, with --full, on sequences
that are all of the full length, where there is nothing to gain. The two sides take turns, each with its own copy of the
model, and see the same batches. Printed are the medians of the time of a step (of the wall clock, and of the processor)
and of the ratios of each turn with their spread, and the greatest difference of the losses.

    python benchmarks/padding.py [--size small|base] [--length 512] [--batch 4] [--turns 7] [--full]
                                 [--precision bfloat16]
"""

import argparse
import statistics
import time
import typing
from collections.abc import Callable
from unittest import mock

import numpy as np
from made_up import SIZES, make_batch

import lucid
from lucid import kernels, random
from lucid.kernels import Precision, threads
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.arguments import Grid
from lucid.nn import flatten
from lucid.optim import AdamW, OneProcess, clip_scale, global_norm

Batch = dict[str, np.ndarray]


def padded_batch(config: BERTConfig, rows: int, length: int, full: bool, seed: int) -> Batch:
    batch, generator = make_batch(config, rows, length), np.random.default_rng(seed)
    lengths = np.full(rows, length) if full else generator.integers(length // 16, length + 1, rows)
    mask = np.arange(length) < lengths[:, None]
    batch["mlm_labels"] = np.where(mask, batch["mlm_labels"], -100)
    batch["token_type_ids"] = (np.arange(length) >= lengths[:, None] // 2) & mask
    return batch | {"attention_mask": mask, "token_type_ids": batch["token_type_ids"].astype(np.int64)}


def make_step(config: BERTConfig) -> Callable[[Batch], float]:
    lucid.manual_seed(0)
    model = BERTForPreTraining(config)
    flat = flatten(model)
    optimizer = AdamW(OneProcess(flat))

    def step(batch: Batch) -> float:
        flat.zero_grad()
        with random.at(random.Coordinates.of(0, optimizer.updates, np.arange(len(batch["input_ids"])))):
            loss = model.get_loss(**batch)
            loss.backward()
        optimizer.step(1e-4, clip_scale(global_norm(optimizer.partition), 1.0))
        return loss.item()

    return step


def with_padding(step: Callable[[Batch], float]) -> Callable[[Batch], float]:
    """Return the step on all slots."""

    def padded(batch: Batch) -> float:
        with mock.patch.object(Grid, "without_padding", lambda grid, _=None: grid.all_slots()):
            return step(batch)

    return padded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--full", action="store_true", help="sequences of the full length only")
    parser.add_argument("--precision", choices=typing.get_args(Precision), default="float32")
    options = parser.parse_args()

    kernels.set_precision(options.precision)
    config = BERTConfig(**SIZES[options.size])
    sides = {"padded": with_padding(make_step(config)), "rows": make_step(config)}
    batches = [
        padded_batch(config, options.batch, options.length, options.full, turn) for turn in range(options.turns + 1)
    ]
    losses: dict[str, list[float]] = {name: [] for name in sides}
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    times: dict[tuple[str, str], list[float]] = {(name, clock): [] for name in sides for clock in clocks}
    for batch in batches:
        for name, step in sides.items():
            started = {clock: read() for clock, read in clocks.items()}
            losses[name].append(step(batch))
            for clock, read in clocks.items():
                times[name, clock].append(read() - started[clock])
    share = statistics.mean(float(batch["attention_mask"].mean()) for batch in batches[1:])
    print(f"{options.size}, {options.batch} sequences of {options.length}, {share:.0%} of the slots are tokens")
    print(f"{options.precision}; products: {kernels.product_library()}; threads: {threads.count()}")
    for clock in clocks:
        # The first turn warms up.
        padded, rows = (times[name, clock][1:] for name in sides)
        ratios = [one / other for one, other in zip(padded, rows, strict=True)]
        print(
            f"{clock:9} padded {statistics.median(padded):7.3f} s, rows {statistics.median(rows):7.3f} s, "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    differences = np.abs(np.subtract(losses["padded"], losses["rows"]))
    print(f"losses {losses['rows'][0]:.4f} to {losses['rows'][-1]:.4f}, greatest difference {differences.max():.1e}")


if __name__ == "__main__":
    main()
