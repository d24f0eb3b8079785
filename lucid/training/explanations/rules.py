"""What a loss curve says of its run, in words: each finding with its evidence and with what to try next.

The rules are functions of the log, the settings and the corpora alone, so a finished run, a running one and a copy of
its folder give the same findings. Their thresholds come from short runs of small models with and without planted
faults (docs/troubleshooting.md). A rule that lacks what it needs is silent.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lucid.backend import Array
from lucid.training.explanations.curve import Curve, Facts
from lucid.training.metrics import Entry

# A held-out MLM loss this far from that of token frequency (nats) is still equal to it, or clearly above it.
_EQUAL, _ABOVE = 0.03, 0.1
# A training MLM loss this far below that of token frequency in the held-out text is not that of the training text.
_LEARNT = 0.2
# The NSP loss of a model that does not see its input is ln 2. Above this, weights move too far in a step.
_NSP_CHANCE, _NSP_DISTURBED = 0.685, 0.707
# The share of the way from token frequency to bigrams after which pairs, too, should be told apart.
_FAR = 0.5
# A rise that counts: nats, and multiples of the noise between lines.
_RISE, _TIMES_NOISE = 0.1, 4.0
# A held-out loss that has risen by this much while training fell: the corpus is being learnt by heart.
_OVERFITTING = 0.05
# The lines before a spike, and those after it, that say what is usual.
_AROUND = 10
# Shares of a corpus, and tokens of a word, that no corpus of the documented kind with its own tokenizer has.
_REPEATED, _UNKNOWN, _TOKENS_PER_WORD = 0.4, 0.01, 2.4
# A warm-up of less than this share of the steps is short.
_SHORT_WARMUP = 0.02


@dataclass(frozen=True)
class Finding:
    """Something that the curve says: its name, the evidence in a sentence, and what to try, "" if all is well."""

    name: str
    evidence: str
    advice: str = ""

    @property
    def is_alarm(self) -> bool:
        """Whether something is wrong."""
        return bool(self.advice)

    def __str__(self) -> str:
        return f"{self.evidence}. {self.advice}." if self.advice else f"{self.evidence}."


@dataclass(frozen=True)
class Spike:
    """Steps `first` to `last`, of which the metric `name` of the log stands out from its `usual` value."""

    first: int
    last: int
    name: str
    value: float
    usual: float


def explain(entries: Sequence[Entry], facts: Facts) -> list[Finding]:
    """Return what the curve says so far, alarms first. Never raises for what a log may contain."""
    curve = Curve(entries)
    with np.errstate(all="ignore"):
        found = [finding for rule in _RULES for finding in rule(curve, facts)]
    return sorted(found, key=lambda finding: not finding.is_alarm)


def _is_late(curve: Curve, facts: Facts) -> bool:
    """Return whether the last evaluation is in the second half of the run; unknown settings: of the log."""
    step = int(max(curve.held_out.step, default=0))
    return step >= 0.5 * (facts.steps or curve.last) > 0


def _level(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Compare the held-out loss with those of counts, in the second half of the run."""
    loss, frequency = (curve.held_out.last_value(f"held_out_{name}_loss") for name in ("mlm", "frequency"))
    bigram, step = curve.held_out.last_value("held_out_bigram_loss"), int(max(curve.held_out.step, default=0))
    if loss < bigram:
        yield Finding(
            "context",
            f"after {step:,} steps the held-out MLM loss, {loss:.3f}, is below that of bigrams ({bigram:.3f}): the "
            "model uses more than the two tokens beside a masked one",
        )
    if math.isnan(loss - frequency) or loss < frequency - _EQUAL or not _is_late(curve, facts):
        return
    if _training_loss(curve, step) < frequency - _LEARNT:
        return  # it uses the context of its own text: `_overfitting` is about that
    rate = max(_finite(curve.training["learning_rate"]).tolist(), default=0.0)
    beginning = f"after {step:,} steps the held-out MLM loss, {loss:.3f}, is"
    guessing = math.log(facts.vocab_size) if facts.vocab_size else math.inf
    is_guess = guessing - _ABOVE < loss < guessing + _ABOVE
    if loss > frequency + _ABOVE and (is_guess or _still_falls(curve)) and not _disturbed(curve):
        level = f"that of guessing (ln {facts.vocab_size:,} = {guessing:.3f})" if is_guess else "falling"
        yield Finding(
            "slow",
            f"{beginning} {level}, and above that of token frequency ({frequency:.3f}): the learning rate, {rate:.2g} "
            "at most so far, is too low, or the run too short",
            "Try optimizer.learning_rate ten times as large, in a short run",
        )
        return
    evidence = (
        f"{beginning} {'still' if loss < frequency + _ABOVE else 'above'} that of token frequency ({frequency:.3f}): "
        "the model uses no context"
    )
    yield Finding("stuck", evidence + _disturbance(curve), _why_stuck(curve, facts, rate))


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _middle(values: Array) -> float:
    """Return the median of the values that are numbers, NaN if none is."""
    finite = _finite(values)
    return float(np.median(finite)) if len(finite) else math.nan


def _still_falls(curve: Curve) -> bool:
    """Return whether the training loss of the last quarter of the lines is below that of the quarter before."""
    loss = curve.training["mlm_loss"]
    quarter = len(loss) // 4
    if not quarter:
        return False
    before, now = loss[-2 * quarter : -quarter], loss[-quarter:]
    return _middle(now) < _middle(before) - 0.005


def _nsp_after_warmup(curve: Curve) -> float:
    """Return the mean NSP loss of the lines from a quarter of the curve on; NaN without pairs."""
    loss = _finite(curve.training["nsp_loss"][len(curve.training) // 4 :])
    return float(np.mean(loss)) if len(loss) else math.nan


def _disturbed(curve: Curve) -> bool:
    return _nsp_after_warmup(curve) > _NSP_DISTURBED


def _disturbance(curve: Curve) -> str:
    if not _disturbed(curve):
        return ""
    return f", and its NSP loss, {_nsp_after_warmup(curve):.3f} on average, is above that of guessing (ln 2 = 0.693)"


def _why_stuck(curve: Curve, facts: Facts, rate: float) -> str:
    lower = f"lower optimizer.learning_rate (so far {rate:.2g} at most) to a third, in a short run"
    if not facts.is_new:
        return (
            "The initial model and the tokenizer may not belong together: compare with `lucid evaluate` of that model "
            f"on this corpus; else {lower}"
        )
    if _disturbed(curve):
        return f"The learning rate is too high: {lower}"
    if facts.steps and facts.warmup_steps is not None and facts.warmup_steps < _SHORT_WARMUP * facts.steps:
        return (
            f"The warm-up of {facts.warmup_steps:,} steps is short: raise optimizer.warmup_steps to "
            f"{max(2, facts.steps // 10):,}, or {lower}"
        )
    return (
        f"Most likely the learning rate is too high: {lower}. If the curve stays the same, the labels cannot be learnt "
        "from the text: look at it with `lucid show RUN --step 1`"
    )


def _rising(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find a training loss that has risen well above its lowest level."""
    steps, loss = curve.training.step, curve.training["mlm_loss"]
    steps, loss = steps[np.isfinite(loss)], loss[np.isfinite(loss)]
    width = max(5, len(loss) // 10)
    if len(loss) < 3 * width:
        return
    levels = np.array([np.median(loss[end - width : end]) for end in range(width, len(loss) + 1, max(1, width // 5))])
    ends = np.arange(width, len(loss) + 1, max(1, width // 5)) - 1
    lowest, now = int(np.argmin(levels)), float(np.median(loss[-width:]))
    noise = 1.4826 * float(np.median(np.abs(np.diff(loss)))) / math.sqrt(2)
    if _held_out_falls(curve, int(steps[ends[lowest]])):
        return
    if now - levels[lowest] > max(_RISE, _TIMES_NOISE * noise / math.sqrt(width)) and ends[lowest] < len(loss) - width:
        rate = curve.training["learning_rate"][-1]
        yield Finding(
            "rising",
            f"the training MLM loss has risen from {levels[lowest]:.3f} at step {steps[ends[lowest]]:,} to {now:.3f} "
            f"(medians of {width} lines), at a learning rate of {rate:.2g} now",
            "If it does not come back, start again from a checkpoint before the rise with a lower "
            "optimizer.learning_rate, or with a smaller optimizer.max_gradient_norm",
        )


def _held_out_falls(curve: Curve, since: int) -> bool:
    """Return whether the last evaluation is better than those up to step `since`, as where the masking rate rises."""
    loss = curve.held_out["held_out_mlm_loss"]
    before = _finite(loss[curve.held_out.step <= since])
    return len(before) > 0 and bool(loss[-1] < before.min())


def _overfitting(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find a held-out loss that rises in two evaluations or more while the training loss falls."""
    steps, loss = curve.held_out.step, curve.held_out["held_out_mlm_loss"]
    steps, loss = steps[np.isfinite(loss)], loss[np.isfinite(loss)]
    if len(loss) < 3:
        return
    best = int(np.argmin(loss))
    later = loss[best + 1 :]
    if len(later) < 2 or later[-2:].min() < loss[best] + _OVERFITTING:
        return
    at_best, at_end = (_training_loss(curve, step) for step in (steps[best], steps[-1]))
    if not at_end < at_best:
        return
    epoch = curve.training.last_value("epoch")
    epochs = f" in epoch {epoch:.1f}" if not math.isnan(epoch) else ""
    yield Finding(
        "overfitting",
        f"the held-out MLM loss was lowest after {steps[best]:,} steps, {loss[best]:.3f}, and is {loss[-1]:.3f} after "
        f"{steps[-1]:,}{epochs}, while the training loss fell from {at_best:.3f} to {at_end:.3f}: the model learns the "
        "corpus by heart",
        f"Take more text, stop after about {steps[best]:,} steps, or raise the model's dropout",
    )


def _training_loss(curve: Curve, step: int) -> float:
    """Return the median training loss of the lines in the tenth of the steps up to this one."""
    near = (curve.training.step <= step) & (curve.training.step > step - max(1, curve.last // 10))
    return _middle(curve.training["mlm_loss"][near])


def _pairs(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find NSP at chance though MLM has come far."""
    loss, frequency, bigram, nsp = (
        curve.held_out.last_value(f"held_out_{name}_loss") for name in ("mlm", "frequency", "bigram", "nsp")
    )
    if not (
        loss < frequency - _FAR * (frequency - bigram) and nsp > _NSP_CHANCE and facts.is_new and _is_late(curve, facts)
    ):
        return
    yield Finding(
        "pairs",
        f"the held-out NSP loss, {nsp:.3f}, is that of guessing (ln 2 = 0.693), though the MLM loss has come "
        f"{(frequency - loss) / (frequency - bigram):.0%} of the way from token frequency to bigrams",
        "Documents may be shuffled sentences, or cut apart: look at pairs with `lucid show RUN --step 1`, or train "
        "without pairs (data.nsp=false)",
    )


def _skipped(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find steps that were skipped because the gradient was not finite."""
    skipped = curve.training["skipped_steps"]
    if not len(skipped) or not skipped[-1] > 0:
        return
    last = int(curve.training.step[np.flatnonzero(skipped == skipped[-1])[0]])
    yield Finding(
        "skipped",
        f"{int(skipped[-1]):,} of {curve.last:,} steps were skipped because the gradient was not finite, the last one "
        f"by step {last:,}",
        "A few are harmless. If they go on, lower optimizer.learning_rate, or train in float32",
    )


def _spiking(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find the largest spike, and say how many there are."""
    found = spikes(curve)
    if not found:
        return
    largest = max(found, key=lambda spike: abs(spike.value - spike.usual))
    names = {"mlm_loss": "MLM loss", "gradient_norm": "gradient norm"}
    where = f"steps {largest.first:,} to {largest.last:,}" if largest.first < largest.last else f"step {largest.last:,}"
    many = f"{len(found)} lines of the log stand out, most of all " if len(found) > 1 else ""
    yield Finding(
        "spikes",
        f"{many}{where}: {names[largest.name]} {largest.value:.3f} where {largest.usual:.3f} is usual",
        "`lucid explain RUN --rows` shows the samples of these steps that fit worst; a lower "
        "optimizer.max_gradient_norm limits what they do",
    )


def spikes(curve: Curve) -> list[Spike]:
    """Return the lines whose MLM loss or gradient norm stands out above the lines around it, in their order.

    Each is compared with the median of ten lines before and ten after it (five, at the end), in robust deviations:
    1.4826 times the median absolute one, but no less than 1% of the median. The loss stands out by 6 of them; the norm
    by 12, and at three times its usual value; both together by 4 and by 8. The loss is a mean over the steps since the
    line before, the norm that of the line's step. The first quarter of the lines is not judged.
    """
    steps = curve.training.step
    loss, norm = (_StandingOut(curve.training[name]) for name in ("mlm_loss", "gradient_norm"))
    by_norm = (norm.deviations > 12) & (norm.values > 3 * norm.usual)
    by_loss = (loss.deviations > 6) | ((loss.deviations > 4) & (norm.deviations > 8)) & ~by_norm
    found = []
    for line in np.flatnonzero(by_loss | by_norm).tolist():
        name, values, first = "mlm_loss", loss, int(steps[line - 1]) + 1
        if not by_loss[line]:
            name, values, first = "gradient_norm", norm, int(steps[line])
        found.append(Spike(first, int(steps[line]), name, float(values.values[line]), float(values.usual[line])))
    return found


class _StandingOut:
    """How far each of some `values` stands out: what is `usual` around it, and by how many robust `deviations`."""

    def __init__(self, values: Array) -> None:
        self.values = values
        self.usual = self.deviations = np.full(len(values), np.nan)
        judged = slice(max(_AROUND, len(values) // 4), len(values) - _AROUND // 2)
        if judged.stop <= judged.start:
            return
        padded = np.concatenate([np.full(_AROUND, np.nan), values, np.full(_AROUND, np.nan)])
        around = np.delete(np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1), _AROUND, axis=1)
        usual = _median(around)
        deviation = 1.4826 * _median(np.abs(around - usual[:, None]))
        self.usual = usual
        self.deviations = self.deviations.copy()
        self.deviations[judged] = ((values - usual) / np.maximum(deviation, 0.01 * np.abs(usual)))[judged]


def _median(rows: Array) -> Array:
    """Return the median of each row without NaN; NaN of a row that has nothing else."""
    numbers = np.sort(rows, axis=1)  # NaN comes last
    count = np.isfinite(numbers).sum(axis=1)
    row, middle = np.arange(len(rows)), np.maximum(count - 1, 0)
    return (numbers[row, middle // 2] + numbers[row, np.minimum(middle - middle // 2, middle)]) / 2


def _corpora(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find corpora that repeat themselves, and tokenizers that do not fit."""
    for corpus in facts.corpora:
        if corpus.repeated is not None and corpus.repeated > _REPEATED:
            yield Finding(
                f"repeats in {corpus.name}",
                f"{corpus.repeated:.0%} of the tokens of {corpus.name} are in sentences that came before: the model "
                "sees the same text more often than the epochs say",
                "Prepare it with --drop-duplicates, or --drop-repeated-lines 10",
            )
        if corpus.unknown > _UNKNOWN:
            fit = f"{corpus.unknown:.1%} of the tokens of {corpus.name} are [UNK]"
        elif corpus.tokens_per_word is not None and corpus.tokens_per_word > _TOKENS_PER_WORD:
            fit = f"{corpus.name} has {corpus.tokens_per_word:.2f} tokens a word"
        else:
            continue
        yield Finding(
            f"tokenizer of {corpus.name}",
            f"{fit}: the tokenizer is made for other text",
            "Prepare it without --tokenizer, to train one; or take a model of this language, or `lucid extend` its "
            "vocabulary",
        )


_RULES: tuple[Callable[[Curve, Facts], Iterator[Finding]], ...] = (
    _corpora,
    _skipped,
    _level,
    _rising,
    _overfitting,
    _pairs,
    _spiking,
)
