"""Replaces functions of objects, classes and modules for a while, by ones that also measure.

So a run loses no time to measurements while nobody measures.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def replace_until_closed(stack: ExitStack, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a function of an object, class or module by `wrap` of it, until `stack` closes."""
    own = vars(owner).get(name)
    setattr(owner, name, wrap(getattr(owner, name)))
    stack.callback(*((delattr, owner, name) if own is None else (setattr, owner, name, own)))
