"""Functions that a run calls, replaced for a while by ones that also measure: of objects, classes and modules.

So nothing takes any time for it while nobody measures.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def replace_until_closed(stack: ExitStack, owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a function of an object, class or module by `wrap` of it, until `stack` closes."""
    own = vars(owner).get(name)
    setattr(owner, name, wrap(getattr(owner, name)))
    stack.callback(*((delattr, owner, name) if own is None else (setattr, owner, name, own)))
