"""The choice among algorithms for a product: each kind of card is timed once, and the stored result is final.

Timing again might give another choice, and so other bits. Therefore the first process that meets a product on a kind of
card times the algorithms and appends a line to a file next to the compiled kernels, and later processes read the line.
If several processes write at once, the first line in the file counts for all. If nothing can be stored, nothing is
timed. No process holds a lock while it waits for its GPU: ranks that wait for each other's locks and for each other's
collectives would deadlock.

A choice is the number of an algorithm, or None for the library's own choice. It is None if nothing could be measured or
stored, and None is never written to the file. A run that continues elsewhere takes its choices along: `used`, `give`.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lucid.backend import gpu_library
from lucid.files import read_bytes
from lucid.kernels.cache import cache_folder, locked

# Each work runs once before it is timed, because a first use loads libraries and code. Then the works take turns, each
# with several runs per turn.
_TURNS, _IN_A_TURN = 3, 3
# A later work is chosen only if it is faster by more than this error of measurement.
_GAIN = 0.02

Choice = int | None

# The choice for each product by kind of card: all known ones, and those that the run records.
_known: dict[str, dict[str, Choice]] = {}
_used: dict[str, dict[str, Choice]] = {}


def chosen(card: str, product: str, seconds: Callable[[], Mapping[int, float]] | None) -> Choice:
    """Return the number of the algorithm for `product` on this kind of card, or None for the library's own choice.

    If there is no choice yet, this calls `seconds` and stores the choice. `seconds` returns the time of each algorithm
    by number: infinity for one that failed, and nothing at all if there was no memory to measure. If `seconds` is None,
    nothing is chosen now, and the result is None.
    """
    known = _known.setdefault(card, {})
    if product not in known:
        # Choices that this process was given, or made, take precedence.
        _known[card] = known = kept(card) | known
    if product not in known:
        if seconds is None:
            return None
        known[product] = _choose(card, product, seconds)
    _used.setdefault(card, {})[product] = known[product]
    return known[product]


def _choose(card: str, product: str, seconds: Callable[[], Mapping[int, float]]) -> Choice:
    """Store and return the fastest algorithm; return None if it cannot be stored or measured."""
    path = _file(card)
    if path is None:
        return None
    measured = {number: each for number, each in seconds().items() if each < math.inf}
    return _keep(path, product, fastest(measured)) if measured else None


def kept(card: str) -> dict[str, Choice]:
    """Return the choices that are stored on this machine, by product."""
    path = _file(card)
    return {} if path is None else dict(_choices_in(path))


def used() -> dict[str, dict[str, Choice]]:
    """Return the choices that a run records, by kind of card: those recorded before, and those used since."""
    return {card: dict(choices) for card, choices in _used.items()}


def give(recorded: Mapping[str, Mapping[str, Choice]], others: Mapping[str, Mapping[str, Choice]]) -> None:
    """Replace all choices at the start of a run by those of `recorded` and `others`, by kind of card.

    `recorded` takes precedence over `others`, and both over the choices stored on the machine. The run has recorded
    `recorded` before, and continues to record it.
    """
    _known.clear()
    _used.clear()
    for card in {**others, **recorded}:
        _known[card] = {**others.get(card, {}), **recorded.get(card, {})}
        _used[card] = dict(recorded.get(card, {}))


def fastest(seconds: Mapping[int, float]) -> int:
    """Return the number of the first algorithm that is about as fast as the fastest."""
    least = min(seconds.values())
    return next(number for number, each in seconds.items() if each <= least * (1 + _GAIN))


def seconds_of(works: Sequence[Callable[[], None]]) -> list[float]:
    """Return the seconds of each work on the current stream, measured with the card's events; infinity if it fails.

    This blocks until all are done. A work that fails raises `RuntimeError`.
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
    """Yield the choices in a file in reverse order, so that in a dict the first line of a product wins."""
    lines = []
    with suppress(OSError):
        lines = read_bytes(path).splitlines()
    for line in reversed(lines):
        # Skip a line that is truncated or not one of ours.
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            choice = json.loads(line)
            product, number = choice["product"], choice["algorithm"]
            if isinstance(product, str) and type(number) is int and number >= 0:
                yield product, number


def _keep(path: Path, product: str, number: int) -> Choice:
    """Write a choice to the file, and return the one that counts: another process may have been first.

    Return None if the file cannot be written.
    """
    # The leading newline ends any line that another writer left unfinished.
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
