"""Special functions of device arrays."""

from typing import Any as _Any

from cupy._array import evaluate as _evaluate
from scipy import special as _special


def ndtr(x: _Any, out: _Any = None) -> _Any:
    return _evaluate(_special.ndtr, x, **({} if out is None else {"out": out}))


def erf(x: _Any, out: _Any = None) -> _Any:
    return _evaluate(_special.erf, x, **({} if out is None else {"out": out}))
