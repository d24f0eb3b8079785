"""Prints the breakdown of a step: aligned columns that add up."""

import statistics

from lucid import kernels
from lucid.analysis.breakdown import COMMUNICATION, DATA, KERNELS, Breakdown, TimedPart
from lucid.kernels import threads
from lucid.models.bert.memory import parameter_count
from lucid.training.formatting import count
from lucid.training.run_on_rank import Run

_LINEAR = {
    "linear": "forward",
    "linear_input_gradient": "input gradient",
    "linear_weight_gradient": "weight gradient",
}
_ATTENTION = {"attention": "forward", "attention_gradient": "backward"}
_OPTIMIZERS = {
    "adamw": "AdamW",
    "lamb_moments": "LAMB, moments",
    "lamb_rates": "LAMB, trust ratios",
    "lamb_update": "LAMB, update",
    "update_factors": "counting updates",
}
_CLIPPING = {"squared_sums": "gradient norm", "root_of_sum": "its root"}
# Their bytes say nothing: one touches only a few rows of its arrays, the other gets arrays twice.
_WITHOUT_RATE = {"embedding_gradient", "communication"}
_NAMES = len("  dropout_add_layer_norm_gradient")


def print_breakdown(run: Run, breakdown: Breakdown) -> None:
    """Print the table of a step of `run`, between a heading and its speed."""
    size = run.communicator.size
    linear, attention = breakdown.linear_flops / size, breakdown.attention_flops / size
    others = {name: name for name in KERNELS if name not in _LINEAR | _ATTENTION | _OPTIMIZERS | _CLIPPING}
    table = _Table(breakdown)
    print(*_heading(run, breakdown), "", sep="\n")
    print(f"{'':{_NAMES}}  {'ms':>10}  {'share':>6}  {'calls':>7}  {'rate':>13}")
    table.group("products of linear layers", _LINEAR, dict.fromkeys(_LINEAR, linear))
    table.group("attention", _ATTENTION, {"attention": attention, "attention_gradient": 2 * attention})
    table.group("other kernels", others, {})
    table.group("optimizer", _OPTIMIZERS, {})
    table.group("clipping", _CLIPPING, {})
    table.part("communication", breakdown.parts.get(COMMUNICATION, TimedPart()))
    table.part("waiting for data", breakdown.parts.get(DATA, TimedPart()))
    table.part("Python and the rest", TimedPart(breakdown.python))
    table.part("step", TimedPart(breakdown.seconds))
    print("", *_speed(breakdown), sep="\n")


class _Table:
    """Prints the lines of a table."""

    def __init__(self, breakdown: Breakdown) -> None:
        self._breakdown = breakdown

    def group(self, title: str, names: dict[str, str], flops: dict[str, float]) -> None:
        """Print the sum of the parts in `names`, and then each part, the longest first."""
        parts = {name: self._breakdown.parts[name] for name in names if name in self._breakdown.parts}
        if not parts:
            return
        total = TimedPart(sum(part.seconds for part in parts.values()), sum(part.calls for part in parts.values()))
        self.part(title, total, sum(flops.get(name, 0.0) for name in parts))
        for name in sorted(parts, key=lambda name: -parts[name].seconds):
            self.part(f"  {names[name]}", parts[name], flops.get(name, 0.0))

    def part(self, title: str, part: TimedPart, flops: float = 0.0) -> None:
        calls = f"{part.calls:,.0f}" if part.calls else ""
        rate = ""
        if flops:
            rate = f"{flops / part.seconds / 1e9:,.1f} GFLOP/s"
        elif part.bytes and title.strip() not in _WITHOUT_RATE:
            rate = f"{part.bytes / part.seconds / 1e9:,.1f} GB/s"
        fraction = part.seconds / self._breakdown.seconds
        print(f"{title:{_NAMES}}  {1e3 * part.seconds:10,.2f}  {fraction:6.1%}  {calls:>7}  {rate:>13}".rstrip())


def _heading(run: Run, breakdown: Breakdown) -> list[str]:
    config, size = run.config, run.communicator.size
    return [
        f"{parameter_count(config.model):,} parameters; {breakdown.sequences} sequences of "
        f"{config.data.sequence_length} tokens a step ({breakdown.tokens:,.0f} tokens, "
        f"{breakdown.masked_tokens:,.0f} of them masked)",
        f"{count(size, 'rank')} x {count(threads.count(), 'thread')}, "
        f"{config.train.precision}; products by {kernels.product_library(run.model.device)}",
    ]


def _speed(breakdown: Breakdown) -> list[str]:
    plain = breakdown.plain_seconds
    seconds = statistics.mean(plain)
    flops = 3 * (breakdown.linear_flops + breakdown.attention_flops)
    limit = breakdown.product_limit
    mfu = flops / seconds / limit
    doubt = " (above 100%: other programs slowed its measurement; measure again)" if mfu > 1 else ""
    return [
        f"without timers: {1e3 * seconds:,.2f} ms a step ({1e3 * min(plain):,.2f} to {1e3 * max(plain):,.2f} in "
        f"{count(len(plain), 'step')}, in turn with the timed ones)",
        f"{breakdown.sequences / seconds:,.2f} sequences/s; {flops / 1e9:,.2f} GFLOP a step, "
        f"{flops / seconds / 1e9:,.1f} GFLOP/s",
        f"MFU {mfu:.1%} of {limit / 1e9:,.1f} GFLOP/s, the rate of a layer's products alone{doubt}",
    ]
