"""Compares the loss that `lucid plan` expects at the end of a run with where recorded runs ended, for docs/scaling.md.

    python benchmarks/loss_fit.py

The runs are those of tests/golden/curves.jsonl. Each curve is cut off at a part of the run, its rest is forecast, and
the mean of the losses in the last twentieth of the steps counts as its end. A forecast that has too few lines is left
out.
"""

import json
from pathlib import Path

import numpy as np

from lucid.analysis.prediction.loss_fit import LossForecast, forecast
from lucid.training.config import from_dict
from lucid.training.schedule import schedule_of

CURVES = Path(__file__).parents[1] / "tests" / "golden" / "curves.jsonl"
SHARES = (0.3, 0.5, 0.7)
END = 0.05


def compared(curve: dict, share: float) -> tuple[LossForecast, float] | None:
    """Return the forecast from the first `share` of a run, and its end; None if that is too little to say."""
    config = from_dict({"run_folder": "unused", **curve["settings"]})
    steps, losses = (np.array(curve["training"][name], float) for name in ("step", "mlm_loss"))
    end, used = config.train.steps, steps <= share * config.train.steps
    rate = schedule_of(config).learning_rate
    found = forecast(steps[used], losses[used], rate, end, config.optimizer.warmup_steps)
    return found and (found, float(np.nanmean(losses[steps > (1 - END) * end])))


def main() -> None:
    """Print the table."""
    curves = [json.loads(line) for line in CURVES.read_text().splitlines()]
    print("| fitted to | runs | median error | largest error | 90% interval holds the end |\n|---|---|---|---|---|")
    for share in SHARES:
        pairs = [pair for each in curves for curve in each.values() if (pair := compared(curve, share))]
        errors = [abs(found.loss - end) / end for found, end in pairs]
        held = sum(found.low <= end <= found.high for found, end in pairs)
        print(f"| {share:.0%} | {len(pairs)} | {np.median(errors):.1%} | {max(errors):.1%} | {held} of {len(pairs)} |")


if __name__ == "__main__":
    main()
