"""Starts a side's process, and gives it its turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from card.workloads import Workload

BENCHMARKS = Path(__file__).parents[1]
SECONDS_TO_LEAVE = 20
LINES_SHOWN = 15


class SideError(Exception):
    """A side failed: it says which, and how its output ends."""


@dataclass(frozen=True)
class Turn:
    """What a side did in a turn: `losses` has a loss for each of its steps."""

    seconds: float
    losses: list[float]
    held_bytes: int

    @property
    def steps_per_second(self) -> float:
        return len(self.losses) / self.seconds


class Running:
    """The process of a side, "lucid" or "torch", for the length of a `with` block."""

    def __init__(
        self, name: str, workload: Workload, folder: str, *more: str, python: str = sys.executable,
        variables: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`more` are further arguments, `python` is the interpreter, `variables` are those of its environment."""
        self.name, self.workload = name, workload
        self._command = [python, "-m", f"card.{name}_side", workload.as_argument(), folder, *more]
        path = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
        self._environment = {**os.environ, "PYTHONPATH": path, **(variables or {})}
        self.facts: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True,
        )  # fmt: skip
        try:
            self.facts = self._answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def take_turn(self, steps: int) -> Turn:
        return Turn(**self._ask({"steps": steps}))

    def rates(self) -> dict[str, float]:
        """Return what `serving.Side.rates` does."""
        return self._ask({"rates": True})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with suppress(BrokenPipeError):
            self._pipe("stdin").write(json.dumps(request) + "\n")
            self._pipe("stdin").flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._pipe("stdout").readline()
        if not line:
            raise self._failure()
        return json.loads(line)

    def _pipe(self, name: str) -> Any:
        return getattr(self._process, name)

    def _failure(self) -> SideError:
        self._process.wait()
        self._log.seek(0)
        output = self._log.read().splitlines()[-LINES_SHOWN:]
        return SideError("\n".join([f"{self.name} ended ({self.workload.name}). Its output ends with:", *output]))

    def _end(self) -> None:
        """Hang up, upon which the process leaves, and see to it that it does."""
        with suppress(BrokenPipeError):
            self._pipe("stdin").close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_TO_LEAVE)
        self._process.kill()
        self._process.wait()
        self._pipe("stdout").close()
        self._log.close()
