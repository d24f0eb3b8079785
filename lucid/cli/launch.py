"""`lucid launch`: starts the ranks of a run with `lucid.launch`, to which it adds the reading of settings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lucid.errors import ConfigError
from lucid.launch import mpirun


def run(arguments: Sequence[str]) -> int:
    """Start ranks as `arguments` say, and return the exit code."""
    return mpirun.main(arguments, progress)


def progress(config: Path, overrides: Sequence[str]) -> tuple[int, Callable[[int], bool]]:
    """Return the step of a run's newest whole checkpoint (0: none), and a test of which numbers of ranks it allows.

    The libraries that read settings and checkpoints are imported here, because only restarts need them. Raises
    `LucidError`.
    """
    from lucid.training.checkpoints.store import CheckpointStore
    from lucid.training.config import load

    settings = load(config, overrides)
    checkpoint, _ = CheckpointStore(settings.run_folder / "checkpoints").newest()

    def allowed(ranks: int) -> bool:
        try:
            settings.check_ranks(ranks)
        except ConfigError:
            return False
        return True

    return (checkpoint.state.step if checkpoint else 0), allowed
