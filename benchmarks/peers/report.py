"""What the comparison found, as Markdown."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from running import Turn
from side import CORES, Side, masked_in_a_row

from lucid import kernels
from lucid.models import BERTConfig
from lucid.models.bert.flops import forward_flops


@dataclass
class Results:
    """What was measured of one workload: `rows` sequences of `length` tokens a step."""

    rows: int
    length: int
    # Of the first steps, without dropout.
    losses: dict[Side, list[float]] = field(default_factory=dict)
    # Sequences a second, and GiB of the largest rank, in every turn.
    rates: dict[Side, list[float]] = field(default_factory=lambda: defaultdict(list))
    peaks: dict[Side, list[float]] = field(default_factory=lambda: defaultdict(list))
    # How many times as fast as the second side the first was in the same turn.
    ratios: dict[tuple[Side, Side], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, turn: dict[Side, Turn]) -> None:
        """Take in a turn of all sides of a group."""
        rates = {side: self.rows * len(result.losses) / result.seconds for side, result in turn.items()}
        for side, result in turn.items():
            self.rates[side].append(rates[side])
            self.peaks[side].append(result.peak)
            for ours in turn:
                if ours.library == "lucid":
                    self.ratios[ours, side].append(rates[ours] / rates[side])

    def difference(self, side: Side) -> float:
        """Return by how much the losses of `side` differ at most from those of the first side, relative."""
        expected = next(iter(self.losses.values()))
        return max(abs(loss / other - 1) for loss, other in zip(self.losses[side], expected, strict=True))


def heading(results: Results, config: BERTConfig, turns: int, steps: int, busy: float) -> str:
    """Return what was measured on what."""
    names = "torch", "transformers", "jax", "numpy"
    libraries = [f"{name} {found}" for name in names if (found := installed_version(name))]
    first = next(iter(results.losses.values()))
    return (
        f"\n{results.rows} sequences of {results.length} tokens a step, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, dropout, AdamW, clipping; {processor()}, {CORES} cores, {busy:.0%} of them taken by "
        f"others at the start; lucid's products in float32 by {kernels.product_library()}; {', '.join(libraries)}.\n"
        f"{turns} turns of {steps} steps: medians, with the least and the most. The first losses of lucid, without "
        f"dropout: {', '.join(f'{loss:.5f}' for loss in first)}.\n"
    )


def table(results: Results, config: BERTConfig) -> str:
    """Return a line for each side. Ratios are those of turns, not of the medians."""
    masked_tokens = results.rows * masked_in_a_row(results.length)
    flops = forward_flops(config, np.full(results.rows, results.length), masked_tokens).training
    layouts = "2 x 1", "1 x 2"
    columns = [
        "library, precision, ranks x threads", "sequences/s", "GFLOP/s",
        *(f"lucid {layout} over it" for layout in layouts), "GiB a rank", "losses differ by",
    ]  # fmt: skip
    lines = [columns, ["---"] * len(columns)]
    for side, rates in results.rates.items():
        ours = [Side("lucid", side.precision, ranks) for ranks in (2, 1)]
        ratios = ["-" if each == side else spread(results.ratios.get((each, side), ())) for each in ours]
        difference = f"{results.difference(side):.1e}"
        speed = f"{statistics.median(rates) / results.rows * flops / 1e9:.0f}"
        lines.append([side.name, spread(rates), speed, *ratios, f"{max(results.peaks[side]):.2f}", difference])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float]) -> str:
    """Return the median with the least and the most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


def processor() -> str:
    """Return the name that the processor gives itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "a processor")


def installed_version(name: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
