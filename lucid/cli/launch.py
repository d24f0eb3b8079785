"""`lucid launch`: starts the ranks of a run with `lucid.launch`, to which it adds the reading of settings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lucid.launch import mpirun


def run(arguments: Sequence[str]) -> int:
    """Start ranks as `arguments` say, and return the exit code."""
    return mpirun.main(arguments, progress)


def progress(config: Path, overrides: Sequence[str]) -> tuple[int, Callable[[int], int]]:
    """Return the step of a run's newest whole checkpoint (0: none), and its settings' `ranks_that_serve`.

    The libraries that read settings and checkpoints are imported here, because only restarts need them. Raises
    `LucidError`.
    """
    from lucid.training.checkpoints.store import CheckpointStore
    from lucid.training.config import load

    settings = load(config, overrides)
    checkpoint, _ = CheckpointStore(settings.run_folder / "checkpoints").newest()
    return (checkpoint.state.step if checkpoint else 0), settings.ranks_that_serve
