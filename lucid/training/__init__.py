"""Runs: their settings, the loop, checkpoints, metrics and evaluation. `run` does all of it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid.training.running import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    # Settings and checkpoints are of use without the loop, which imports all that there is below.
    if name == "run":
        from lucid.training.running import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
