"""Which of several algorithms makes a product: what was timed once on a kind of card is kept, and is the truth.

To time again might give another choice, and with it other bits. So a choice is made once: the first process that meets
a product on a kind of card times, writes a line to a file beside the compiled kernels, and all that come later read it.
Of several that write at once, the line that comes first in the file counts for all. Where nothing can be kept, nothing
is chosen by time. Nobody holds a lock while it waits for its GPU: ranks that wait for each other's locks and for each
other's collectives would never end.

A choice is the number of an algorithm, or None: the library's own choice. It is None where nothing could be measured or
kept, and such a choice is never written to the file. A run that goes on elsewhere brings the choices that it was made
with: `used`, and `give`.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lucid.backend import gpu_library
from lucid.kernels.cache import cache_folder, locked

# A first use loads what it needs, so each work is done once before it is timed. Then the works take turns: in each turn
# a work is done several times.
_TURNS, _IN_A_TURN = 3, 3
# A work that comes later is taken only if it is faster by more than what measuring is off by.
_GAIN = 0.02

Choice = int | None

# By kind of card, the choice for each product: all that are known, and those that a run records.
_known: dict[str, dict[str, Choice]] = {}
_used: dict[str, dict[str, Choice]] = {}


def chosen(card: str, product: str, seconds: Callable[[], Mapping[int, float]] | None) -> Choice:
    """Return the number of the algorithm that makes `product` on this kind of card, None for the library's own choice.

    If there is no choice yet, `seconds` is called. It returns how long each algorithm takes, by number: infinity for
    one that failed, nothing at all if there was no room to measure. The choice is kept. If `seconds` is None, nothing
    is chosen now, and the answer is None.
    """
    known = _known.setdefault(card, {})
    if product not in known:
        # What this process was given, or has chosen, stays.
        _known[card] = known = kept(card) | known
    if product not in known:
        if seconds is None:
            return None
        known[product] = _choose(card, product, seconds)
    _used.setdefault(card, {})[product] = known[product]
    return known[product]


def _choose(card: str, product: str, seconds: Callable[[], Mapping[int, float]]) -> Choice:
    """Return the fastest algorithm, once it is kept; None if it cannot be kept, or could not be measured."""
    path = _file(card)
    if path is None:
        return None
    measured = {number: each for number, each in seconds().items() if each < math.inf}
    return _keep(path, product, fastest(measured)) if measured else None


def kept(card: str) -> dict[str, Choice]:
    """Return the choices that this machine has kept, by product."""
    path = _file(card)
    return {} if path is None else dict(_choices_in(path))


def used() -> dict[str, dict[str, Choice]]:
    """Return, by kind of card, what a run records: what it had recorded before, and what was asked for since."""
    return {card: dict(choices) for card, choices in _used.items()}


def give(recorded: Mapping[str, Mapping[str, Choice]], others: Mapping[str, Mapping[str, Choice]]) -> None:
    """Let a run begin: forget all choices, and let those of `recorded` and `others`, by kind of card, hold instead.

    They count more than what the machine has kept, and `recorded` more than `others`. The run has recorded `recorded`
    before, and goes on recording it.
    """
    _known.clear()
    _used.clear()
    for card in {**others, **recorded}:
        _known[card] = {**others.get(card, {}), **recorded.get(card, {})}
        _used[card] = dict(recorded.get(card, {}))


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


def _keep(path: Path, product: str, number: int) -> Choice:
    """Write a choice to the file, and return the one that counts, as another process may have been first.

    Return None if it cannot be written.
    """
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
        return dict(_choices_in(path)).get(product)


def _file(card: str) -> Path | None:
    folder = cache_folder("products", Path(__file__).parent)
    return None if folder is None else folder / f"{re.sub('[^A-Za-z0-9]+', '-', card)}.jsonl"
