"""Runs for the tests of what looks at logs: made up, without folders."""

from pathlib import Path

from small_run import SETTINGS

from lucid.analysis.logged_run import LoggedRun
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.config import from_dict


def line(step, attempt=1, samples=None, speed=32.0, **values):
    """A line about training: a step has 32 samples of 10 tokens, and takes a second."""
    samples = 32 * step if samples is None else samples
    known = {"step": step, "attempt": attempt, "samples": samples, "tokens": 10 * samples, "mlm_loss": 8 - step / 10}
    return known | {"sequences_per_second": speed, "skipped_steps": 0} | values


def evaluation(step, loss, corpus=""):
    return {"step": step, "attempt": 1, "samples": 32 * step, f"held_out_mlm_loss{corpus}": loss}


def run(entries, name="run", ranks=None, settings=None, step=0, training_seconds=0.0):
    """A run; with `settings`, by section, and a checkpoint at `step`."""
    folder = Path(name)
    if settings is None:
        return LoggedRun(folder, list(entries))
    sections = {"data": {"path": "corpus"}} | settings
    given = {key: SETTINGS.get(key, {}) | value for key, value in sections.items() if isinstance(value, dict)}
    plain = {key: value for key, value in sections.items() if not isinstance(value, dict)}
    config = from_dict({**SETTINGS, **given, **plain, "run_folder": name})
    no_window = (0.0,) * 6
    state = TrainingState(step, 0, 0, 0, 0, no_window, "", "", {}, config.as_dict(), training_seconds=training_seconds)
    return LoggedRun(folder, list(entries), config, ranks, state)
