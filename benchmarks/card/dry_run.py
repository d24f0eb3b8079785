"""Writes down what a card would be asked to do, by the real CuPy over tests/stand_in, and does none of it.

What is launched is caught where lucid starts its kernels and its products, and otherwise below CuPy, where it calls
CUDA. Memory is taken that nobody touches, so shapes may be those of real training.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cupy
import numpy as np
import watching
from card import costs
from card.costs import Launch

from lucid.kernels.cuda import gemm, launching
from lucid.nn import init

# Where a line is not looked for that asks for something.
ASKED_BY_OTHERS = str(Path(cupy.__file__).parent), watching.__file__, __file__


class DryRun:
    """The launches since `launches` was cleared. `flops_of_product` are those of a product in attention."""

    def __init__(self, flops_of_product: int) -> None:
        self.launches: list[Launch] = []
        self._flops_of_product = flops_of_product

    def function(self, form: Any, name: str, device: int, architecture: str) -> Callable[..., None]:
        """Stand for `launching._function`: return what is called to start a kernel."""

        def start(grid: Any, block: Any, given: tuple[Any, ...], **settings: Any) -> None:
            self.launches.append(costs.kernel(form.element, name, given, self._flops_of_product))

        return start

    def plan(self, device: str, product: Any, timed: bool) -> "Plan":
        """Stand for `gemm.plan_of`."""
        return Plan(product, self.launches)

    def see(self, what: str, size: int, shape: tuple[int, ...]) -> None:
        """Write down what CuPy asks for, as `watching.watched` says."""
        if what.endswith(" the host"):
            launch = Launch("copy", what, call_site(), size)
        else:
            name = what.removeprefix("cupy_").partition("__")[0]
            over = f"[{', '.join(map(str, shape))}] at {call_site()}" if shape else call_site()
            # Nothing is launched that moves nothing: of this it is not known what it moves.
            launch = Launch("CuPy", name, over, size, is_known=size > 0)
        self.launches.append(launch)


class Plan:
    """Stands for a plan of `plans`, and for its chosen candidate."""

    is_fused = True

    def __init__(self, product: Any, launches: list[Launch]) -> None:
        self.chosen, self._product, self._launches = self, product, launches

    def run(self, operands: Any) -> None:
        first, second, out, addend, vector, *_ = operands
        self._launches.append(costs.product(self._product.operations, first, second, out, addend, vector))


@contextmanager
def dry_run(flops_of_product: int) -> Iterator[DryRun]:
    """Let nothing be done on the card inside the block, and initial weights be zeros."""
    run = DryRun(flops_of_product)
    with ExitStack() as stack:
        for owner, name, stand_in in (
            (launching, "_function", run.function),
            (gemm, "plan_of", run.plan),
            (init, "truncated_normal", lambda shape, deviation: np.zeros(shape, np.float32)),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        stack.enter_context(watching.watched(run.see))
        yield run


def call_site() -> str:
    """Return the line outside of CuPy that is being done."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(ASKED_BY_OTHERS):
        frame = frame.f_back
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
