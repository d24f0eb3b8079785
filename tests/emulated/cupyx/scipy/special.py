"""Special functions of device arrays."""

from typing import Any

from cupy._array import evaluate
from scipy import special


def ndtr(x: Any, out: Any = None) -> Any:
    return evaluate(special.ndtr, x, **({} if out is None else {"out": out}))


def erf(x: Any, out: Any = None) -> Any:
    return evaluate(special.erf, x, **({} if out is None else {"out": out}))
