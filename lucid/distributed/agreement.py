"""Errors that only some ranks see: all ranks learn of them, so that they end together, in order, with one message."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from lucid.distributed.communicator import Communicator
from lucid.errors import LucidError

T = TypeVar("T")


def all_or_none(communicator: Communicator, action: Callable[[], T]) -> T:
    """Return what `action` gives on this rank, if it succeeds on every rank.

    If it raises a `LucidError` on any, every rank raises the error of the first of these, marked `agreed`: all ranks
    know of it. `action` itself must not communicate. All ranks call this together.
    """
    error: LucidError | None = None
    result = None
    try:
        result = action()
    except LucidError as caught:
        error = caught
    failed = np.zeros(communicator.size, np.int64)
    failed[communicator.rank] = error is not None
    communicator.all_reduce(failed).wait()
    if not failed.any():
        return result  # type: ignore[return-value]  # without an error there is a result
    raise _shared(communicator, error, root=int(failed.argmax())) from error


def _shared(communicator: Communicator, error: LucidError | None, root: int) -> LucidError:
    """Return rank `root`'s error on all ranks."""
    text = np.frombuffer(str(error).encode(), np.uint8).copy()
    facts = np.array([len(text), error.exit_code if error else 0], np.int64)
    communicator.broadcast(facts, root)
    length, exit_code = facts.tolist()
    if communicator.rank != root:
        text = np.zeros(length, np.uint8)
    communicator.broadcast(text, root)
    shared = LucidError(text.tobytes().decode())
    shared.exit_code = exit_code
    shared.agreed = True
    return shared
