"""Lists what a training step of BERT asks of a GPU, on a machine without one, and what it takes at least.

    python benchmarks/gpu_launches.py
    python benchmarks/gpu_launches.py --models base --lengths 128 --list
    python benchmarks/gpu_launches.py --models tiny --lengths 16 --list

A step of a run with `device: cuda` and `precision: bfloat16` is gone through by the real CuPy over what stands in for
CUDA in tests/stand_in, which takes g++ and the extra `gpu-ci`. Nothing is done: every launch is written down with the
bytes that it reads and writes, the FLOPs of its products, and the instructions of attention that drops. Its floor is
the longest of the three times that these take at the rates given. The rates of copies and products were measured on an
H200. The rate of instructions is four a cycle, at 1.7 GHz, on each of its 132 multiprocessors.
The sum of all floors is what a step could take if every launch were perfect and none waited; the second sum says what
it could take if none was shorter than --least, which is about what the smallest launch in a CUDA graph takes.
"""

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from card.costs import Launch, Rates
from card.workloads import AIMS, CEILINGS, Workload

if TYPE_CHECKING:
    from card.training_step import TrainingStep

STAND_IN = str(Path(__file__).resolve().parents[1] / "tests" / "stand_in")
# One GPU, whose memory takes anything.
GPU = {"CUDA_VISIBLE_DEVICES": "0", "EMULATED_MEMORY": str(2**60)}
COLUMNS = (
    "model, sequences x tokens, dropout", "launches", "products", "kernels", "CuPy's", "copies", "GB", "GFLOP",
    "floor, ms", "sequences/s", "with the least, ms", "sequences/s", "ceiling", "aim",
)  # fmt: skip
LISTED = "launch", "over", "times", "MB", "GFLOP", "floor, us", "together, us", "share"


def launches_of(workload: Workload) -> tuple[list[Launch], int]:
    """Return the launches of a step that is not the first, and the FLOPs of its linear layers by `models.bert.flops`.

    The latter are those of the rows that are computed, made-up ones and the vocabulary's padding included.
    """
    from card.dry_run import dry_run
    from card.training_step import TrainingStep
    from peers.side import full_batch

    from lucid.distributed import connect
    from lucid.models import BERTConfig, BERTForPreTraining

    config = BERTConfig(**workload.settings)
    batch = full_batch(workload.rows, workload.length, config.vocab_size)
    product = 2 * workload.rows * workload.length**2 * config.hidden_size
    with dry_run(product) as run:
        communicator = connect("single", "cuda")
        model = BERTForPreTraining(config).train()
        step = TrainingStep(model, communicator, workload, batch, graphs=False)
        step.take()
        run.launches.clear()
        step.take()
        padded = replace(config, vocab_size=len(model.cls.predictions.bias.padded))
        return run.launches, linear_flops(padded, step)


def linear_flops(config, step: "TrainingStep") -> int:
    """Return the FLOPs of all products of linear layers, forward and backward, of the rows that are computed."""
    from card.training_step import shapes_of

    from lucid.models.bert.flops import forward_flops

    rows, labelled, sequences = shapes_of(step)
    # Linear layers do not mind which rows are which sequence's.
    lengths = np.append(np.zeros(sequences - 1, np.int64), rows)
    return 3 * forward_flops(config, lengths, labelled).linear


def total(workload: Workload, launches: list[Launch], rates: Rates, least: float) -> list[str]:
    """Return the line of a workload; no launch takes less than `least` seconds in the second sum."""
    kinds = Counter(each.kind for each in launches)
    floor, longer = rates.seconds(launches), rates.seconds(launches, least)
    key = workload.model, workload.length
    return [
        workload.name, str(len(launches)), *(str(kinds[kind]) for kind in ("product", "kernel", "CuPy", "copy")),
        f"{sum(each.bytes for each in launches) / 1e9:.2f}", f"{sum(each.flops for each in launches) / 1e9:,.0f}",
        f"{1e3 * floor:.3f}", f"{workload.rows / floor:,.0f}", f"{1e3 * longer:.3f}", f"{workload.rows / longer:,.0f}",
        *(f"{table[key]:,}" if key in table else "-" for table in (CEILINGS, AIMS)),
    ]  # fmt: skip


def listed(launches: list[Launch], rates: Rates) -> list[list[str]]:
    """Return a line for each kind of launch, the longest together first; unknown ones are marked."""
    alike: dict[tuple[str, str, bool], list[Launch]] = defaultdict(list)
    for launch in launches:
        name = f"CuPy's {launch.name}" if launch.kind == "CuPy" else launch.name
        alike[name, launch.over, launch.is_known].append(launch)
    whole, lines = rates.seconds(launches), []
    for (name, over, is_known), group in sorted(alike.items(), key=lambda item: -rates.seconds(item[1])):
        seconds, count = rates.seconds(group), len(group)
        moved, flops = (sum(getattr(each, part) for each in group) / count for part in ("bytes", "flops"))
        lines.append([
            name if is_known else f"{name} (unknown)", over, str(count), f"{moved / 1e6:,.2f}",
            f"{flops / 1e9:.3g}" if flops else "", f"{1e6 * seconds / count:.1f}", f"{1e6 * seconds:,.0f}",
            f"{seconds / whole:.1%}",
        ])  # fmt: skip
    return lines


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def print_heading(columns: Sequence[str]) -> None:
    print_row(columns)
    print_row(["---"] * len(columns))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("base", "large", "tiny"), default=["base", "large"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch", type=int, help="sequences a step (default: what fills a card of 80 GB)")
    parser.add_argument("--list", action="store_true", help="print every launch, not the totals alone")
    parser.add_argument("--copy", type=float, default=4.3, help="TB/s of a copy, read and written together")
    parser.add_argument("--product", type=float, default=790, help="TFLOP/s of a large product in bfloat16")
    parser.add_argument("--issue", type=float, default=898, help="billions of a warp's instructions begun in a second")
    parser.add_argument("--least", type=float, default=2.0, help="microseconds of the smallest launch")
    return parser.parse_args(arguments)


def begin_over_the_stand_in() -> None:
    """Begin this program anew with what stands in for CUDA, unless it has that; end it if it cannot be had here."""
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = [STAND_IN, *(folder for folder in path if folder not in ("", STAND_IN))]
    wanted = GPU | {"PYTHONPATH": os.pathsep.join(path)}
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted)
    from building import why_no_stand_in

    if why_no_stand_in():
        sys.exit(why_no_stand_in())


def main() -> None:
    options = parse()
    begin_over_the_stand_in()
    rates = Rates(options.copy * 1e12, options.product * 1e12, options.issue * 1e9)
    totals, details = [], []
    for model in options.models:
        for length in options.lengths:
            workload = Workload.of(model, length, options.batch, options.dropout)
            launches, linear = launches_of(workload)
            totals.append(total(workload, launches, rates, options.least / 1e6))
            details.append((workload, listed(launches, rates)))
            products = sum(each.flops for each in launches if each.kind == "product")
            unknown = sum(not each.is_known for each in launches)
            print(
                f"{workload.name}: {products:,} FLOPs in products, {linear:,} in the model's linear layers; "
                f"{unknown} unknown launches",
                file=sys.stderr,
            )
    print_heading(COLUMNS)
    for line in totals:
        print_row(line)
    for workload, lines in details if options.list else ():
        print(f"\n{workload.name}:\n")
        print_heading(LISTED)
        for line in lines:
            print_row(line)


if __name__ == "__main__":
    main()
