"""`lucid launch`: starts the ranks of a run. `lucid.launch` does it, and this adds what it asks of a run's settings."""

from collections.abc import Callable, Sequence
from pathlib import Path

from lucid.errors import ConfigError
from lucid.launch import mpirun


def run(arguments: Sequence[str]) -> int:
    """Start what `arguments` ask for. Return its exit code, if this process does not become mpiexec."""
    return mpirun.main(arguments, progress)


def progress(config: Path, overrides: Sequence[str]) -> tuple[int, Callable[[int], bool]]:
    """Return the step of a run's newest whole checkpoint (0: none), and whether its settings allow a number of ranks.

    It is called after a failure only, and loads the libraries that read settings and checkpoints then. Raises
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
