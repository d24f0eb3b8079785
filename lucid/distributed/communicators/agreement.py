"""How all ranks learn what only some know: texts, numbers, and errors, so that all end in order with one message."""

import json
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import numpy as np

from lucid import errors
from lucid.backend import Array
from lucid.distributed.communicators.communicator import Communicator
from lucid.errors import LucidError

T = TypeVar("T")
ErrorT = TypeVar("ErrorT", bound=LucidError)


def all_or_none(communicator: Communicator, action: Callable[[], T]) -> T:
    """Return the result of `action` on this rank, if it succeeds on every rank.

    If `action` raises a `LucidError` on some ranks, every rank raises the error of the lowest of them: one of the same
    class of `lucid.errors`, with its message and exit code, and marked `agreed`. `action` must not communicate. All
    ranks call this together.
    """
    error: LucidError | None = None
    result = None
    try:
        result = action()
    except LucidError as caught:
        error = caught
    failed = gather_rows(communicator, np.array(error is not None, np.int64))
    if not failed.any():
        return result  # type: ignore[return-value]  # without an error there is a result
    raise _broadcast_error(communicator, error, root=int(failed.argmax())) from error


def agreed(error: ErrorT) -> ErrorT:
    """Return an error that every rank raises by itself, from what all know, marked as such."""
    error.agreed = True
    return error


def is_agreed(error: BaseException) -> bool:
    """Return whether every rank has this error, so that all can end in order."""
    return isinstance(error, LucidError) and error.agreed


def run_on_first_rank(communicator: Communicator, action: Callable[[], str]) -> str:
    """Run `action` on the first rank only, and return its text on all ranks.

    All ranks raise its `LucidError`, as `all_or_none` does. All ranks call this together.
    """
    text = all_or_none(communicator, lambda: action() if communicator.rank == 0 else "")
    return broadcast_text(communicator, text)


def gather_rows(communicator: Communicator, row: Array) -> Array:
    """Return on every rank the numbers `row` of all ranks, in their order: [ranks, *row.shape], of the same dtype.

    All ranks call this together, with rows of one shape and dtype, in host memory.
    """
    rows = np.zeros((communicator.size, *row.shape), row.dtype)
    rows[communicator.rank] = row
    communicator.all_reduce(rows).wait()
    return rows


def gather_texts(communicator: Communicator, text: str) -> list[str]:
    """Return on every rank the `text` of all ranks, in their order. All ranks call this together."""
    content = _encode(text)
    lengths = gather_rows(communicator, np.array(len(content)))
    bounds = [0, *np.cumsum(lengths).tolist()]
    together = np.zeros(bounds[-1], np.uint8)
    together[bounds[communicator.rank] : bounds[communicator.rank + 1]] = content
    communicator.all_gather(together, bounds).wait()
    return [_decode(together[start:stop]) for start, stop in pairwise(bounds)]


def broadcast_text(communicator: Communicator, text: str, root: int = 0) -> str:
    """Return on every rank the `text` of rank `root`. All ranks call this together."""
    content = _encode(text)
    length = np.array([len(content)], np.int64)
    communicator.broadcast(length, root)
    if communicator.rank != root:
        content = np.zeros(int(length[0]), np.uint8)
    communicator.broadcast(content, root)
    return _decode(content)


def _broadcast_error(communicator: Communicator, error: LucidError | None, root: int) -> LucidError:
    """Return rank `root`'s error on all ranks."""
    sent = [] if error is None else [_class_name(error), int(error.exit_code), str(error)]
    name, exit_code, message = json.loads(broadcast_text(communicator, json.dumps(sent), root))
    shared: LucidError = getattr(errors, name)(message)
    shared.exit_code = exit_code
    return agreed(shared)


def _class_name(error: LucidError) -> str:
    """Return the name of the error's class, or of its nearest base, in `lucid.errors`, where all ranks find it."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)


def _encode(text: str) -> np.ndarray:
    # A message may quote a file name that is not UTF-8.
    return np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).copy()


def _decode(content: np.ndarray) -> str:
    return content.tobytes().decode(errors="surrogatepass")
