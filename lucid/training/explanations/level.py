"""Rules about the level of the held-out losses, compared with those of token frequency, bigrams and guessing."""

import math
from collections.abc import Iterator

import numpy as np

from lucid.training.explanations.curve import Curve, finite, middle
from lucid.training.explanations.facts import Facts
from lucid.training.explanations.finding import Finding

# A held-out MLM loss this far from the loss of token frequency (nats) still equals it, or is clearly above it.
_EQUAL, _ABOVE = 0.03, 0.1
# A training MLM loss this far below the loss of token frequency in held-out text has another reason than the text.
_LEARNT = 0.2
# The NSP loss of a model that does not see its input is ln 2. Above this, weights move too far in a step.
_NSP_CHANCE, _NSP_DISTURBED = 0.685, 0.707
# The share of the way from token frequency to bigrams after which pairs, too, should be told apart.
_FAR = 0.5
# Up to so many steps only a loss well above the loss of guessing (nats) means anything.
_FEWEST_STEPS, _FAR_ABOVE = 50, 1.0
# A warm-up of less than this share of the steps is short.
_SHORT_WARMUP = 0.02


def against_counts(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find a model that uses more context than bigrams, and in the second half of the run one that uses none."""
    loss, frequency = (curve.held_out.last_value(f"held_out_{name}_loss") for name in ("mlm", "frequency"))
    bigram, step = curve.held_out.last_value("held_out_bigram_loss"), int(max(curve.held_out.step, default=0))
    if loss < bigram:
        yield Finding(
            "context",
            f"after {step:,} steps the held-out MLM loss, {loss:.3f}, is below the loss of bigrams ({bigram:.3f}): the "
            "model uses more than the two neighbours of a masked token",
        )
    if math.isnan(loss - frequency) or loss < frequency - _EQUAL or not _is_late(curve, facts):
        return
    if curve.training_loss_at(step) < frequency - _LEARNT:
        return  # it uses the context of its own text: `shape.overfitting` is about that
    rate = max(finite(curve.training["learning_rate"]).tolist(), default=0.0)
    beginning = f"after {step:,} steps the held-out MLM loss, {loss:.3f},"
    guessing = math.log(facts.vocab_size) if facts.vocab_size else math.inf
    if step < _FEWEST_STEPS and not loss > guessing + _FAR_ABOVE:
        return
    is_guess = guessing - _ABOVE < loss < guessing + _ABOVE
    if loss > frequency + _ABOVE and (is_guess or _still_falls(curve)) and not _disturbed(curve):
        guess = f"equals the loss of guessing (ln {facts.vocab_size:,} = {guessing:.3f})"
        level = f"{guess if is_guess else 'is falling'}, and is above the loss of token frequency ({frequency:.3f})"
        yield Finding(
            "slow",
            f"{beginning} {level}: the learning rate, {rate:.2g} at most so far, is too low, or the run too short",
            "Try optimizer.learning_rate ten times as large, in a short run",
        )
        return
    evidence = (
        f"{beginning} {'still equals' if loss < frequency + _ABOVE else 'is above'} the loss of token frequency "
        f"({frequency:.3f}): the model uses no context"
    )
    yield Finding("stuck", evidence + _disturbance(curve), _why_stuck(curve, facts, rate))


def _still_falls(curve: Curve) -> bool:
    """Return whether the training loss of the last quarter of the lines is below the loss of the quarter before."""
    loss = curve.training["mlm_loss"]
    quarter = len(loss) // 4
    if not quarter:
        return False
    before, now = loss[-2 * quarter : -quarter], loss[-quarter:]
    return middle(now) < middle(before) - 0.005


def _nsp_after_warmup(curve: Curve) -> float:
    """Return the mean NSP loss of the lines from a quarter of the curve on; NaN without pairs."""
    loss = finite(curve.training["nsp_loss"][len(curve.training) // 4 :])
    return float(np.mean(loss)) if len(loss) else math.nan


def _disturbed(curve: Curve) -> bool:
    return _nsp_after_warmup(curve) > _NSP_DISTURBED


def _disturbance(curve: Curve) -> str:
    if not _disturbed(curve):
        return ""
    loss = _nsp_after_warmup(curve)
    return f", and its NSP loss, {loss:.3f} on average, is above the loss of guessing (ln 2 = 0.693)"


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


def pairs_at_chance(curve: Curve, facts: Facts) -> Iterator[Finding]:
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
        f"the held-out NSP loss, {nsp:.3f}, equals the loss of guessing (ln 2 = 0.693), though the MLM loss has come "
        f"{(frequency - loss) / (frequency - bigram):.0%} of the way from token frequency to bigrams",
        "Documents may be shuffled sentences, or cut apart: look at pairs with `lucid show RUN --step 1`, or train "
        "without pairs (data.nsp=false)",
    )


def _is_late(curve: Curve, facts: Facts) -> bool:
    """Return whether the last evaluation is in the second half of the run; unknown settings: of the log."""
    step = int(max(curve.held_out.step, default=0))
    return step >= 0.5 * (facts.steps or curve.last) > 0
