"""The entities that the labels of words mark, such as `B-PER I-PER O`, and how many of them are found.

The rules are those of the `conlleval` script of the CoNLL shared tasks, which also take IOB1 and IOBES: an `I-` whose
type differs from the word before begins an entity as `B-` does.
"""

import re
from collections.abc import Iterable, Sequence

OUTSIDE = "O"
_MARK = re.compile(r"[BIES]-.+")

# An entity: its type, its first word, and the word after its last.
Entity = tuple[str, int, int]


def mark_entities(labels: Iterable[str]) -> bool:
    """Return whether labels mark entities: each is `O`, or begins with `B-`, `I-`, `E-` or `S-`."""
    marks = [label for label in labels if label != OUTSIDE]
    return bool(marks) and all(map(_MARK.fullmatch, marks))


def entities(labels: Sequence[str]) -> set[Entity]:
    """Return the entities of a sentence."""
    found: set[Entity] = set()
    start, before, kind = 0, OUTSIDE, ""
    for number, label in enumerate((*labels, OUTSIDE)):
        mark, _, own = label.partition("-")
        begins = mark in ("B", "S") or before in ("E", "S", OUTSIDE) or own != kind
        if before != OUTSIDE and (begins or mark == OUTSIDE):
            found.add((kind, start, number))
        if mark != OUTSIDE and begins:
            start = number
        before, kind = mark, own
    return found
