"""How a process takes its turns: it builds its side, and then waits on its standard input for the word to begin.

What it answers goes to the standard output that it was started with; whatever else is printed goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import IO, Any, Protocol


class Side(Protocol):
    """A library that trains a workload on the card."""

    def step(self) -> None:
        """Ask for a step. Nothing has to be done on return."""

    def finish(self) -> list[tuple[float, float]]:
        """Wait until all steps are done, and return the loss and the gradient's norm of each since the last call."""

    def facts(self) -> dict[str, str]:
        """Return names and versions: of the card, and of what the side is made of."""

    def held_bytes(self) -> int:
        """Return how much of the card's memory this process has taken since it opened the card."""

    def rates(self) -> dict[str, float]:
        """Return the card's FLOP/s of a large product and bytes/s of a copy, or nothing if it is not asked for."""


def serve(build: Callable[[], Side]) -> None:
    """Answer requests, each a line of JSON, until there are no more."""
    with own_output() as output:
        side = build()
        say(output, side.facts())
        for line in sys.stdin:
            request = json.loads(line)
            say(output, side.rates() if request.get("rates") else take_turn(side, request["steps"]))


def own_output() -> IO[str]:
    """Return the standard output, and let all that is printed from now on go to standard error."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return output


def say(output: IO[str], answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer) + "\n")
    output.flush()


def take_turn(side: Side, steps: int) -> dict[str, Any]:
    """Return what `steps` steps took, from a card that is idle to one that is idle again, and what came of each."""
    side.finish()
    started = time.perf_counter()
    for _ in range(steps):
        side.step()
    outcomes = side.finish()
    return {"seconds": time.perf_counter() - started, "outcomes": outcomes, "held_bytes": side.held_bytes()}
