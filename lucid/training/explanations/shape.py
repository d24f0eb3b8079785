"""Rules about the shape of the curve: losses that rise."""

import math
from collections.abc import Iterator

import numpy as np

from lucid.training.explanations.curve import Curve, finite
from lucid.training.explanations.facts import Facts
from lucid.training.explanations.finding import Finding

# A rise that counts: nats, and multiples of the noise between lines.
_RISE, _TIMES_NOISE = 0.1, 4.0
# A held-out loss that has risen by this much while training fell: the corpus is being learnt by heart.
_OVERFITTING = 0.05


def rising(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find a training loss that has risen well above its lowest level, but for one that rises with the masking rate."""
    if facts.masking_rises:
        return
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
    before = finite(loss[curve.held_out.step <= since])
    return len(before) > 0 and bool(loss[-1] < before.min())


def overfitting(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find a held-out loss that rises in two evaluations or more while the training loss falls."""
    steps, loss = curve.held_out.step, curve.held_out["held_out_mlm_loss"]
    steps, loss = steps[np.isfinite(loss)], loss[np.isfinite(loss)]
    if len(loss) < 3:
        return
    best = int(np.argmin(loss))
    later = loss[best + 1 :]
    if len(later) < 2 or later[-2:].min() < loss[best] + _OVERFITTING:
        return
    at_best, at_end = (curve.training_loss_at(step) for step in (steps[best], steps[-1]))
    if not at_end < at_best:
        return
    epoch = curve.training.last_value("epoch")
    epochs = f" in epoch {epoch:.1f}" if not math.isnan(epoch) else ""
    yield Finding(
        "overfitting",
        f"the held-out MLM loss was lowest after {steps[best]:,} steps, {loss[best]:.3f}, and is {loss[-1]:.3f} after "
        f"{steps[-1]:,}{epochs}, while the training loss fell from {at_best:.3f} to {at_end:.3f}: the model learns the "
        "corpus by heart",
        f"Train on more text, stop after about {steps[best]:,} steps, or raise model.hidden_dropout_prob",
    )
