"""Jobs for the pool: the command line, as if it had been started on these ranks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lucid.cli import main
from lucid.distributed import StopRequest, session
from lucid.distributed.communicators.communicator import Communicator
from lucid.training import run
from lucid.training.config import load


def command(arguments: list[str], within: Callable[[], AbstractContextManager[Any]] = nullcontext) -> int:
    """Run `lucid ARGUMENTS` and return its exit code; `within` is entered before, and left after."""
    with within():
        try:
            main(arguments)
        except SystemExit as leaving:
            return int(leaving.code or 0)
    raise AssertionError("lucid returned")


class _StopAfter:
    """Asks to stop when so many steps have been taken. The run stops after the next: ranks agree a step ahead."""

    def __init__(self, communicator: Communicator, steps: int) -> None:
        self._communicator, self._steps = communicator, steps

    @property
    def requested(self) -> bool:
        return self._communicator.status.step + 1 >= self._steps


def train_until_step(step: int, config: str, overrides: list[str]) -> int:
    """Train a run that the last of its ranks stops after `step`, counted over all starts; return the exit code."""
    with session() as group:
        last = group.rank == group.size - 1
        return run(load(Path(config), overrides), group, _StopAfter(group, step - 1) if last else StopRequest())
