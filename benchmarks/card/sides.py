"""Starts a side's process, and gives it its turns."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
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
    """What a side did in a turn: `outcomes` has the loss and the gradient's norm of each of its steps."""

    seconds: float
    outcomes: list[tuple[float, float]]
    held_bytes: int

    @property
    def steps_per_second(self) -> float:
        return len(self.outcomes) / self.seconds

    @property
    def has_learned(self) -> bool:
        """Whether each step had a loss and a gradient: finite, and other than 0."""
        return all(math.isfinite(number) and number > 0 for outcome in self.outcomes for number in outcome)


class Running:
    """The process of a side, "lucid" or "torch", for the length of a `with` block."""

    def __init__(
        self, name: str, workload: Workload, folder: str, *more: str, python: str = sys.executable,
        path: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`more` are further arguments, `python` is the interpreter, which looks for modules in `path` first."""
        self.name, self.workload, self.facts = name, workload, dict[str, str]()
        self._command = [python, "-m", f"card.{name}_side", workload.as_argument(), folder, *more]
        self._path = path
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            path = [*self._path, stack.enter_context(own_modules()), *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(
                self._command, env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            )  # fmt: skip
            stack.callback(self._end)
            self.facts = self._answer()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

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


@contextmanager
def own_modules() -> Iterator[str]:
    """Make a folder in which the two packages of the sides are found, and nothing else of the benchmarks.

    For `transformers` looks for a package of the name of one of them, `kernels`.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in ("card", "peers"):
            Path(folder, name).symlink_to(BENCHMARKS / name)
        yield folder
