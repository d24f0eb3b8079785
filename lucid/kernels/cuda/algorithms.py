"""Which of several algorithms makes a product: what was timed once on a kind of card is kept, and is the truth.

To time again might give another choice, and with it other bits. So a choice is made once: the first process that meets
a product on a kind of card times, writes a line to a file beside the compiled kernels, and all that come later read it.
Of several that write at once, the line that comes first in the file counts for all. Where nothing can be kept, nothing
is chosen by time. Nobody holds a lock while it waits for its GPU: ranks that wait for each other's locks and for each
other's collectives would never end.

A run that goes on elsewhere brings the choices that it was made with: `used`, and `give`.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lucid.backend import gpu_library
from lucid.kernels.compiled import folder_of, locked

# Each work is done once, for what is loaded by a first use; then they take turns, of several each.
_TURNS, _IN_A_TURN = 3, 3
# A work that comes later is taken only if it is faster by more than what measuring is off by.
_GAIN = 0.02

# The number of the library's own choice.
FIRST = 0

# By kind of card: the number of each product's algorithm, of all that are known, and of those that were asked for.
_known: dict[str, dict[str, int]] = {}
_used: dict[str, dict[str, int]] = {}


def chosen(card: str, product: str, seconds: Callable[[], Mapping[int, float]] | None) -> int | None:
    """Return the number of the algorithm that makes `product` on this kind of card.

    If there is none, `seconds` is called for how long those take that there are, by their numbers, and the choice is
    kept; it is `FIRST` if it cannot be. If `seconds` is None there is no choice: None.
    """
    known = _known.setdefault(card, {})
    if product not in known:
        # What this process was given, or has chosen, stays.
        _known[card] = known = kept(card) | known
    if product not in known:
        if seconds is None:
            return None
        path = _file(card)
        known[product] = FIRST if path is None else _keep(path, product, fastest(seconds()))
    _used.setdefault(card, {})[product] = known[product]
    return known[product]


def kept(card: str) -> dict[str, int]:
    """Return the choices that this machine has kept, by product."""
    path = _file(card)
    return {} if path is None else dict(_choices_in(path))


def used(card: str) -> dict[str, int]:
    """Return the choices that this process has asked for since the last `give`, by product."""
    return dict(_used.get(card, {}))


def give(card: str, choices: Mapping[str, int]) -> None:
    """Let these choices hold in this process, whatever was kept; those that it has known are forgotten."""
    _known[card], _used[card] = dict(choices), {}


def fastest(seconds: Mapping[int, float]) -> int:
    """Return the number of the first one that is as good as the fastest."""
    least = min(seconds.values())
    return next(number for number, each in seconds.items() if each <= least * (1 + _GAIN))


def seconds_of(works: Sequence[Callable[[], None]]) -> list[float]:
    """Return how long each work takes on the current stream, by the card's events; infinity for one that fails.

    It blocks until they are done. A work that is refused raises `RuntimeError`.
    """
    cuda = gpu_library().cuda
    least = [0.0 if _can_be_done(work) else math.inf for work in works]
    turns = []
    for _ in range(_TURNS):
        for number, work in enumerate(works):
            if least[number] == math.inf:
                continue
            started, ended = cuda.Event(), cuda.Event()
            started.record()
            for _ in range(_IN_A_TURN):
                work()
            ended.record()
            turns.append((number, started, ended))
    for number, started, ended in turns:
        ended.synchronize()
        took = cuda.get_elapsed_time(started, ended) / 1000 / _IN_A_TURN
        least[number] = min(least[number] or math.inf, took)
    return least


def _can_be_done(work: Callable[[], None]) -> bool:
    try:
        work()
    except RuntimeError:
        return False
    return True


def _choices_in(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the choices in a file, those that count last."""
    lines = []
    with suppress(OSError):
        lines = path.read_bytes().splitlines()
    for line in reversed(lines):
        # A line that was cut short, or written by somebody else, is none.
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            choice = json.loads(line)
            product, number = choice["product"], choice["algorithm"]
            if isinstance(product, str) and type(number) is int and number >= 0:
                yield product, number


def _keep(path: Path, product: str, number: int) -> int:
    """Write a choice to the file, and return the one that counts: another process may have been first."""
    # It begins a line of its own, whatever the last writer left.
    line = b"\n" + json.dumps({"product": product, "algorithm": number}).encode() + b"\n"
    with locked(path.parent):
        found = dict(_choices_in(path))
        if product in found:
            return found[product]
        with suppress(OSError):  # a full disk is no reason to stop
            file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(file, line)
            finally:
                os.close(file)
        return dict(_choices_in(path)).get(product, FIRST)


def _file(card: str) -> Path | None:
    folder = folder_of("products", Path(__file__).parent)
    return None if folder is None else folder / f"{re.sub('[^A-Za-z0-9]+', '-', card)}.jsonl"
