"""Writes down what a card would be asked to do, on the CuPy of tests/emulated, and does none of it.

What is launched is caught where lucid starts its kernels and its products, and where the emulated CuPy does what its
own functions do. Large arrays are memory that nobody touches, so shapes may be those of real training.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import cupy
import cupy._array
import cupy._functions
import numpy as np
from card import costs
from card.costs import Launch

from lucid.kernels.cuda import gemm, launching
from lucid.nn import init

# What is smaller is done as long as the stream does not capture, since indices come of it.
SMALL_BYTES = 2**26
EMULATION, HERE = str(Path(cupy.__file__).parent), __file__


class DryRun:
    """The launches since `launches` was cleared. `flops_of_product` are those of a product in attention."""

    def __init__(self, flops_of_product: int) -> None:
        self.launches: list[Launch] = []
        self._flops_of_product = flops_of_product
        # How many operations of the card the function of CuPy that runs has submitted; None while none runs.
        self._submitted: int | None = None

    def function(self, form: Any, name: str, device: int, architecture: str) -> Callable[..., None]:
        """Stand for `launching._function`: return what is called to start a kernel."""

        def start(grid: Any, block: Any, given: tuple[Any, ...], **settings: Any) -> None:
            self.launches.append(costs.kernel(form.element, name, given, self._flops_of_product))

        return start

    def plan(self, device: str, product: Any, timed: bool) -> "Plan":
        """Stand for `gemm.plan_of`."""
        return Plan(product, self.launches)

    def submit(self, operation: Callable[[], Any], stream: Any = None, memory: Any = ()) -> None:
        """Stand for `cupy.emulation.submit`."""
        if self._submitted is None:
            self.launches.append(Launch("CuPy", "?", call_site(), sum(each.size for each in memory), is_known=False))
        else:
            self._submitted += 1
        if not cupy.emulation.is_capturing(stream) and sum(each.size for each in memory) < SMALL_BYTES:
            operation()

    def watched(self, function: Callable[..., Any], describe: Callable[..., Launch]) -> Callable[..., Any]:
        """Return a function of CuPy that is written down, by `describe(result, *arguments)`, if it launches.

        What it calls is not.
        """

        def call(*arguments: Any, **settings: Any) -> Any:
            if self._submitted is not None:
                return function(*arguments, **settings)
            self._submitted = 0
            try:
                result = function(*arguments, **settings)
            finally:
                submitted, self._submitted = self._submitted, None
            if submitted:
                self.launches.append(describe(result, *arguments, **settings))
            return result

        return call


class Plan:
    """Stands for a plan of `plans`, and for the way that it goes."""

    is_whole = True

    def __init__(self, product: Any, launches: list[Launch]) -> None:
        self.way, self._product, self._launches = self, product, launches

    def run(self, operands: Any) -> None:
        first, second, out, addend, vector, *_ = operands
        self._launches.append(costs.product(self._product.operations, first, second, out, addend, vector))


@contextmanager
def dry_run(flops_of_product: int) -> Iterator[DryRun]:
    """Let nothing be done on the emulated card inside the block, and initial weights be zeros."""
    run = DryRun(flops_of_product)
    array = cupy._array.ndarray
    evaluate = run.watched(cupy._array.evaluate, evaluation)
    functions = {name: each for name, each in vars(cupy).items() if isinstance(each, FunctionType)}
    with ExitStack() as stack, np.errstate(all="ignore"):
        for owner, name, stand_in in (
            (launching, "_function", run.function),
            (gemm, "plan_of", run.plan),
            (init, "truncated_normal", lambda shape, deviation: np.zeros(shape, np.float32)),
            (cupy.emulation, "submit", run.submit),
            (cupy._array, "_poison", lambda host: None),
            (cupy._array, "evaluate", evaluate),
            (cupy._functions, "evaluate", evaluate),
            *((cupy, name, run.watched(each, described_as(name))) for name, each in functions.items()),
            (array, "__setitem__", method(run.watched(array.__setitem__, assignment))),
            (array, "fill", method(run.watched(array.fill, assignment))),
            (array, "set", method(run.watched(array.set, from_host))),
            (array, "get", method(run.watched(array.get, to_host))),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        yield run


def method(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function as one that an object gets for its own."""

    def call(self: Any, *arguments: Any, **settings: Any) -> Any:
        return function(self, *arguments, **settings)

    return call


def evaluation(result: Any, function: Any, *arguments: Any, shape_of: Any = None, **settings: Any) -> Launch:
    """Describe a method or an operator of arrays, which NumPy's `function` does."""
    return described_as(name_of(function))(result, *arguments, **settings)


def described_as(name: str) -> Callable[..., Launch]:
    """Return what describes a call of a function of CuPy."""

    def describe(result: Any, *arguments: Any, **settings: Any) -> Launch:
        read = sum(each.nbytes for each in arrays_in([*arguments, *settings.values()]))
        written = arrays_in([result])
        moved = sum(each.nbytes for each in written)
        # Of what is indexed only some is read: as much as is written, beside the index.
        read = min(read, 2 * moved) if name in ("index", "take") else read
        return Launch("CuPy", name, f"{costs.shape(written[0])} at {call_site()}", moved + read)

    return describe


def assignment(result: None, target: Any, *index_and_value: Any) -> Launch:
    *index, value = index_and_value
    written = target if index in ([], [Ellipsis]) else target[index[0]]
    read = value.nbytes if isinstance(value, cupy.ndarray) else 0
    return Launch("CuPy", "assignment", f"{costs.shape(written)} at {call_site()}", written.nbytes + read)


def from_host(result: None, target: Any, *rest: Any, **settings: Any) -> Launch:
    return Launch("copy", "copy from the host", costs.shape(target), target.nbytes)


def to_host(result: Any, source: Any, *rest: Any, **settings: Any) -> Launch:
    return Launch("copy", "copy to the host", costs.shape(source), source.nbytes)


def arrays_in(values: Any) -> list[Any]:
    """Return the arrays of the card in nested lists."""
    found = []
    for value in values:
        found += arrays_in(value) if isinstance(value, list | tuple) else [value]
    return [value for value in found if isinstance(value, cupy.ndarray)]


def name_of(function: Any) -> str:
    """Return the name of the function of CuPy that is being called, which is done by NumPy's `function`."""
    if function.__name__ != "<lambda>":
        return function.__name__
    frame, name = sys._getframe(1), ""
    while frame is not None and frame.f_code.co_filename == HERE:
        frame = frame.f_back
    if frame is not None:
        name = frame.f_locals.get("name", frame.f_code.co_name)
    return "index" if name == "__getitem__" else name


def call_site() -> str:
    """Return the line outside of CuPy that is being done."""
    frame = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename.startswith(EMULATION) or frame.f_code.co_filename == HERE):
        frame = frame.f_back
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
