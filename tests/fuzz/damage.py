"""Ways to damage what is read from outside: bytes at random, and values of JSON that no reader of ours wrote."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

from lucid.errors import LucidError

HOSTILE_VALUES = [
    None,
    True,
    -1,
    0,
    0.5,
    2**31,
    2**63,
    10**400,
    float("inf"),
    float("nan"),
    "",
    "7",
    "\ud800",
    "a\0b",
    "../../outside",
    "/etc/hostname",
    "x" * 5000,
    [],
    [[]],
    {},
    {"": None},
]


def refusal(error_class: type[LucidError], action: Callable[[], object]) -> str | None:
    """Return the message with which `action` refuses what it reads; None if it takes it. Nothing else is expected."""
    try:
        action()
    except error_class as error:
        return str(error)
    return None


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut short, with bits flipped, or with bytes put in or taken out."""
    place = draw(st.integers(0, len(content) - 1))
    match draw(st.sampled_from(["cut", "flipped", "put in", "taken out"])):
        case "cut":
            return content[:place]
        case "flipped":
            altered = bytearray(content)
            for where in {place, *draw(st.lists(st.integers(0, len(content) - 1), max_size=3))}:
                altered[where] ^= 1 << draw(st.integers(0, 7))
            return bytes(altered)
        case "put in":
            return content[:place] + draw(st.binary(min_size=1, max_size=20)) + content[place:]
        case _:
            return content[:place] + content[place + draw(st.integers(1, 40)) :]


def damaged_json(content: Any) -> st.SearchStrategy[Any]:
    """`content` with one of its values replaced by one that does not belong there, or taken out."""
    return st.builds(
        _replaced, st.just(content), st.sampled_from(list(_paths(content))), st.sampled_from([_GONE, *HOSTILE_VALUES])
    )


_GONE = object()


def _paths(content: Any) -> Iterator[list[Any]]:
    """Yield where the values of `content` are, each as the keys that lead to it."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield [key]
        yield from ([key, *path] for path in _paths(value))


def _replaced(content: Any, path: list[Any], value: Any) -> Any:
    copy = json.loads(json.dumps(content))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if value is _GONE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return copy
