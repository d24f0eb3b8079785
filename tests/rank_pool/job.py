"""What the two sides of the pool send each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A call for the first `ranks` of the pool. `call` is pickled: a function, its arguments by place and by name."""

    call: bytes
    ranks: int
    environment: dict[str, str]
    working_folder: str
    # Where modules are found that the call names.
    module_path: list[str]
    # Rank r writes what the job prints to `outputs / str(r)`.
    outputs: Path
    seconds: float


@dataclass(frozen=True)
class Done:
    """The function has returned, on this rank."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """The function has raised, on this rank: the name of the class, the message, and the traceback with both."""

    kind: str
    message: str
    trace: str
