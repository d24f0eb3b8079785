"""Times training steps of BERT on one GPU, lucid's beside PyTorch's on the same card, and prints a Markdown table.

    python benchmarks/gpu_step.py
    python benchmarks/gpu_step.py --models base --lengths 128 --dropouts 0.1 --turns 7
    python benchmarks/gpu_step.py --torch-python .venv-torch/bin/python --mode max-autotune
    python benchmarks/gpu_step.py --sides lucid
    python benchmarks/gpu_step.py --tiny

Both train in bfloat16 from the same weights on the same batch without padding, with AdamW and clipping, and score the
vocabulary at the masked positions alone. lucid has CUDA graphs. PyTorch is compiled and runs under autocast, with
`transformers`' model, scaled_dot_product_attention and fused AdamW; it may have an interpreter of its own, since its
wheels ask for other versions of CUDA's libraries. Without dropout the losses and the gradients' norms of the first
steps are compared, and have to agree to 1% and 5%. Then both take turns, each of many steps, in an order that rotates;
who waits leaves the card alone. Between the turns, events of the card time a product of 8,192 x 8,192 x 8,192 by
cuBLASLt and a copy of 1 GiB (read and written): the card's own rates.

With --tiny the models are small, lucid's GPU is emulated, and PyTorch may be on the CPU: this shows that all runs.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from card.sides import Running, SideError, Turn
from card.workloads import Workload

import lucid
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.flops import forward_flops

CHECKED_STEPS, WARM_UP_STEPS = 3, 5
# Of the losses of the first steps, and of the gradients' norms, relative. The norms are of gradients in bfloat16.
TOLERANCES = 0.01, 0.05
COLUMNS = (
    "model, sequences x tokens, dropout", "lucid, sequences/s", "PyTorch, sequences/s", "lucid over PyTorch",
    "TFLOP/s, lucid and PyTorch", "share of the product's rate", "product, TFLOP/s", "copy, TB/s",
    "GiB, lucid and PyTorch", "losses differ by", "norms differ by",
)  # fmt: skip
EMULATION = Path(__file__).parents[1] / "tests" / "stand_in"


@dataclass
class Results:
    """What was measured of one workload, by side."""

    workload: Workload
    turns: dict[str, list[Turn]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    differences: tuple[float, ...] | None = None

    def sequences_per_second(self, side: str) -> list[float]:
        return [self.workload.rows * turn.steps_per_second for turn in self.turns.get(side, ())]

    def ratios(self) -> list[float]:
        """Return how many times as fast as PyTorch lucid was in each turn."""
        pairs = zip(self.turns.get("lucid", ()), self.turns.get("torch", ()), strict=False)
        return [ours.steps_per_second / theirs.steps_per_second for ours, theirs in pairs]

    def flops_per_second(self, side: str) -> float | None:
        """Return the model's FLOPs a second, at the median speed."""
        workload, rates = self.workload, self.sequences_per_second(side)
        lengths = np.full(workload.rows, workload.length)
        flops = forward_flops(BERTConfig(**workload.settings), lengths, workload.masked_tokens).training
        return statistics.median(rates) / workload.rows * flops if rates else None

    def row(self) -> list[str]:
        """Return a line of the table."""
        sides = "lucid", "torch"
        flops = [self.flops_per_second(side) for side in sides]
        product, copy = (statistics.median(self.rates.get(name, ()) or [float("nan")]) for name in ("product", "copy"))
        # In the first turn: what the rates take is kept as well.
        held = [turns[0].held_bytes if (turns := self.turns.get(side)) else 0 for side in sides]
        return [
            self.workload.name,
            *(spread(self.sequences_per_second(side), "{:,.0f}") for side in sides),
            spread(self.ratios(), "{:.2f}"),
            ", ".join("-" if each is None else f"{each / 1e12:.3g}" for each in flops),
            ", ".join("-" if each is None else f"{each / product:.1%}" for each in flops),
            f"{product / 1e12:.3g}",
            f"{copy / 1e12:.3g}",
            ", ".join(f"{each / 2**30:.1f}" for each in held),
            *(["-", "-"] if self.differences is None else [f"{each:.1e}" for each in self.differences]),
        ]


def spread(values: Sequence[float], form: str) -> str:
    """Return the median with the least and the most."""
    if not values:
        return "-"
    median, least, most = (form.format(each) for each in (statistics.median(values), min(values), max(values)))
    return f"{median} ({least} to {most})"


def measure(workload: Workload, folder: str, options: argparse.Namespace) -> Results:
    """Let the sides take turns at a workload, whose weights are in `folder`.

    Raises `SideError` if one fails or learns nothing, or the first steps do not agree.
    """
    results = Results(workload)
    write_dropout(folder, workload)
    with ExitStack() as stack:
        running: list[Running] = []
        first_turns = []
        for name in options.sides:
            running.append(stack.enter_context(start(name, workload, folder, options)))
            first_turns.append(taken(running[-1], CHECKED_STEPS))
            taken(running[-1], WARM_UP_STEPS)
            say(f"{name}, {workload.name}: {running[-1].facts}, losses and norms {first_turns[-1].outcomes}")
            note(options, {"workload": workload.name, "side": name, "first": first_turns[-1].outcomes})
        if workload.dropout == 0 and len(running) > 1:
            results.differences = differences(*(turn.outcomes for turn in first_turns))
            note(options, {"workload": workload.name, "differences": results.differences})
        for number in range(options.turns):
            first = number % len(running)
            for side in running[first:] + running[:first]:
                turn = taken(side, options.steps)
                results.turns.setdefault(side.name, []).append(turn)
                rate = workload.rows * turn.steps_per_second
                found = {"sequences_per_second": rate, "held_bytes": turn.held_bytes, "last": turn.outcomes[-1]}
                note(options, {"workload": workload.name, "side": side.name, "turn": number, **found})
                for name, rate in side.rates().items():
                    results.rates.setdefault(name, []).append(rate)
    return results


def taken(side: Running, steps: int) -> Turn:
    """Let a side take a turn. Raises `SideError` unless each step had a loss and a gradient."""
    turn = side.take_turn(steps)
    if not turn.has_learned:
        raise SideError(f"{side.name} had steps without a loss or a gradient ({side.workload.name}): {turn.outcomes}")
    return turn


def note(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Add a line to the file of results, if there is to be one."""
    if options.results:
        with open(options.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def start(name: str, workload: Workload, folder: str, options: argparse.Namespace) -> Running:
    if name == "torch":
        return Running(name, workload, folder, options.mode, python=options.torch_python)
    return Running(name, workload, folder, path=[str(EMULATION)] if options.tiny else [])


def differences(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return by how much losses and norms differ at most, relative. Raises `SideError` beyond `TOLERANCES`."""
    found = tuple(np.abs(np.array(ours) / np.array(theirs) - 1).max(axis=0).tolist())
    if not all(each <= most for each, most in zip(found, TOLERANCES, strict=True)):
        losses, norms = found
        raise SideError(f"losses differ by {losses:.1%} and norms by {norms:.1%} at first: {ours} and {theirs}")
    return found


def write_dropout(folder: str, workload: Workload) -> None:
    """Let those who read the model in `folder` drop out what the workload says."""
    path = Path(folder, "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | workload.settings))


def say(sentence: str) -> None:
    """Tell how far the benchmark is, apart from its table."""
    print(sentence, file=sys.stderr, flush=True)


def print_row(cells: Sequence[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("base", "large"), default=["base", "large"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--dropouts", nargs="+", type=float, default=[0.1, 0.0])
    parser.add_argument("--batch", type=int, help="sequences a step (default: what fills a card of 80 GB)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of each turn")
    parser.add_argument("--sides", nargs="+", choices=("lucid", "torch"), default=["lucid", "torch"])
    parser.add_argument("--torch-python", default=sys.executable, help="the interpreter that has torch, transformers")
    parser.add_argument("--mode", default="default", help="of torch.compile; 'eager': PyTorch is not compiled")
    parser.add_argument("--results", metavar="FILE", help="add each turn to this file as it comes, a line of JSON")
    parser.add_argument("--tiny", action="store_true", help="small models, and no GPU")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.models, options.lengths = ["tiny"], [16]
    return options


def workloads(options: argparse.Namespace) -> dict[str, list[Workload]]:
    """Return what is to be measured, by model."""
    return {
        model: [
            Workload.of(model, length, options.batch, dropout)
            for length in options.lengths
            for dropout in options.dropouts
        ]
        for model in options.models
    }


def main() -> None:
    options, failed = parse(), False
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    for model, several in workloads(options).items():
        with tempfile.TemporaryDirectory() as folder:
            lucid.manual_seed(0)
            BERTForPreTraining(BERTConfig(**several[0].settings)).save_pretrained(folder)
            for workload in several:
                try:
                    print_row(measure(workload, folder, options).row())
                except SideError as error:
                    failed = True
                    say(f"{model} failed: {error}")
    print(f"\n{options.turns} turns of {options.steps} steps: medians, with the least and the most.")
    sys.exit(int(failed))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
