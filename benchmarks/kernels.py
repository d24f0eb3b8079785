"""Times every compiled kernel, the NumPy reference and, if it is installed, PyTorch, at BERT-base's shapes.

The sides take turns. The table has the medians over the turns with their spread, the bytes or operations per second,
and the medians of each turn's ratios: how many times longer the others take. PyTorch's side is the code that its users
write for the same result, with its own fused operations; a dash means that it has none.

    python benchmarks/kernels.py [--length 128] [--batch 8] [--turns 7] [--only NAME] [--precision bfloat16]
"""

import argparse
import statistics
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lucid import kernels
from lucid.kernels import Precision, reference, threads
from lucid.kernels.arguments import AdamSettings, Dropout, UpdateBuffers
from lucid.kernels.sequences import Sequences
from lucid.kernels.targets import Target
from lucid.nn.parameters import BLOCK
from lucid.random import Coordinates

try:
    import torch
    from torch.nn import functional
except ImportError:
    torch = None

WIDTH, HEADS, VOCABULARY, OPTIMIZED = 768, 12, 30_522, 24_000_000
PROBABILITY, PURPOSE, EPSILON = 0.1, 1 << 16, 1e-12
# The learning rate, the gradient scale, and both bias corrections.
FACTORS = np.array([1e-4, 1.0, 2.0, 2.0**0.5])
SETTINGS = AdamSettings(betas=(0.9, 0.999), epsilon=1e-6, weight_decay=0.01)
BOUNDS = np.append(np.arange(0, OPTIMIZED, BLOCK), OPTIMIZED)


@dataclass(frozen=True)
class Case:
    """One kernel: its arguments, its work in gigabytes or giga-operations, and the same in PyTorch."""

    name: str
    arguments: tuple[Any, ...]
    work: float
    unit: str
    settings: dict[str, Any]
    peer: Callable[[], Any] | None
    # What it is done to, where a kernel has several lines.
    label: str = ""


class Cases:
    """Makes the cases for a batch of B sequences of length T."""

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.generator = np.random.default_rng(0)
        self.dropout = Dropout(PROBABILITY, PURPOSE, Coordinates.of(1, 2, np.arange(rows)))

    def normal(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape, dtype=np.float32)

    def hidden(self, widths: int = 1) -> np.ndarray:
        return self.normal(self.rows, self.length, widths * WIDTH)

    def all(self) -> list[Case]:
        return [
            *self.products(),
            *self.elementwise(),
            *self.norms(),
            *self.attention(),
            *self.losses(),
            *self.optimizers(),
        ]

    def case(
        self, name: str, *arguments: Any, outputs: float = 1, operations: float = 0, peer: Any = None, **settings: Any
    ) -> Case:
        """Return a case that moves its arrays and `outputs` times the first, or computes `operations`."""
        updated = [array for each in arguments if isinstance(each, UpdateBuffers) for array in each[:4]]
        arrays = updated + [array for array in arguments if isinstance(array, np.ndarray)]
        gigabytes = (sum(array.nbytes for array in arrays) + outputs * arrays[0].nbytes) / 1e9
        work, unit = (operations / 1e9, "GFLOP/s") if operations else (gigabytes, "GB/s")
        return Case(name, arguments, work, unit, settings, peer if torch else None)

    def products(self) -> list[Case]:
        """Return those of a layer: three each of query, key and value as one, of the output, and of both wide maps."""
        shapes = [(WIDTH, 3 * WIDTH), (WIDTH, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
        return [case for inputs, outputs in shapes for case in self.product(inputs, outputs)]

    def product(self, inputs: int, outputs: int) -> list[Case]:
        rows = self.rows * self.length
        x, weight, gradient = self.normal(rows, inputs), self.normal(outputs, inputs), self.normal(rows, outputs)
        work, label = 2 * rows * inputs * outputs / 1e9, f"{inputs}->{outputs}"
        tensors, transposed = tensors_of(x, weight, gradient), tensors_of(gradient.T)
        arguments = {
            "linear": ((x, weight, None), lambda: functional.linear(tensors[0], tensors[1])),
            "linear_input_gradient": ((gradient, weight), lambda: tensors[2] @ tensors[1]),
            "linear_weight_gradient": (
                (gradient, x, Target(np.empty_like(weight), False)), lambda: transposed[0] @ tensors[0],
            ),
        }  # fmt: skip
        return [
            Case(name, ours, work, "GFLOP/s", {}, peer if torch else None, label)
            for name, (ours, peer) in arguments.items()
        ]

    def elementwise(self) -> list[Case]:
        x, gradient, bias = self.hidden(4), self.hidden(4), self.normal(4 * WIDTH)
        narrow = self.hidden()
        tensors = tensors_of(x, bias)
        return [
            self.case("activation", x, bias, "gelu", peer=lambda: functional.gelu(tensors[0] + tensors[1])),
            self.case(
                "activation_gradient", gradient, x, bias, "gelu", target_of(bias),
                peer=backward(lambda x, bias: functional.gelu(x + bias), gradient, x, bias),
            ),
            self.case(
                "linear_bias_gradient", gradient, target_of(bias), outputs=0,
                peer=lambda: tensors[0].sum(dim=(0, 1)),
            ),
            self.case(
                "dropout", narrow, self.dropout, peer=lambda: functional.dropout(tensors_of(narrow)[0], PROBABILITY)
            ),
        ]  # fmt: skip

    def norms(self) -> list[Case]:
        x, residual, gradient = self.hidden(), self.hidden(), self.hidden()
        weight, bias, shift = self.normal(WIDTH), self.normal(WIDTH), self.normal(WIDTH)
        _, mean, reciprocal = reference.layer_norm(x, weight, bias, EPSILON)
        tensors = tensors_of(x, bias, residual, weight, shift)

        def norm(x: Any, weight: Any, bias: Any) -> Any:
            return functional.layer_norm(x, (WIDTH,), weight, bias, EPSILON)

        def fused(x: Any, bias: Any, residual: Any, weight: Any, shift: Any) -> Any:
            return norm(functional.dropout(x + bias, PROBABILITY) + residual, weight, shift)

        return [
            self.case("layer_norm", x, weight, bias, EPSILON, peer=lambda: norm(*tensors[2:])),
            self.case(
                "layer_norm_gradient", gradient, x, weight, mean, reciprocal, target_of(weight), target_of(bias),
                peer=backward(norm, gradient, x, weight, bias),
            ),
            self.case(
                "dropout_add_layer_norm", x, bias, residual, weight, shift, EPSILON, self.dropout, outputs=2,
                peer=lambda: fused(*tensors),
            ),
            self.case(
                "dropout_add_layer_norm_gradient", gradient, x, weight, mean, reciprocal, self.dropout,
                *map(target_of, (bias, weight, shift)), outputs=2,
                peer=backward(fused, gradient, x, bias, residual, weight, shift),
            ),
        ]  # fmt: skip

    def attention(self) -> list[Case]:
        B, T = self.rows, self.length
        joined, gradient = self.normal(B * T, 3 * WIDTH), self.normal(B * T, WIDTH)
        sequences = Sequences.padded(np.empty((B, T)), None)
        of_rows = replace(self.dropout, coordinates=sequences.coordinates(self.dropout.coordinates))
        settings = sequences, HEADS, of_rows
        _, probabilities = reference.attention(joined, *settings)
        operations = 4 * B * T * T * WIDTH
        tensors = tensors_of(joined)

        def attend(joined: Any) -> Any:
            heads = joined.view(B, T, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            output = functional.scaled_dot_product_attention(*heads, dropout_p=PROBABILITY)
            return output.transpose(1, 2).reshape(B * T, WIDTH)

        return [
            self.case("attention", joined, *settings, operations=operations, peer=lambda: attend(*tensors)),
            self.case(
                "attention_gradient", gradient, joined, probabilities, *settings, operations=2 * operations,
                peer=backward(attend, gradient, joined),
            ),
        ]  # fmt: skip

    def losses(self) -> list[Case]:
        masked = max(1, self.rows * self.length * 15 // 100)
        logits, gradient = self.normal(masked, VOCABULARY), self.normal(masked)
        labels = self.generator.integers(0, VOCABULARY, masked)
        _, log_sum = reference.cross_entropy(logits, labels, -100)
        ids = self.generator.integers(0, VOCABULARY, (self.rows, self.length))
        table, hidden = self.normal(VOCABULARY, WIDTH), self.hidden()
        tensors = tensors_of(logits, labels, table, ids.reshape(-1), hidden.reshape(-1, WIDTH))

        def loss(logits: Any) -> Any:
            return functional.cross_entropy(logits, tensors[1], reduction="none")

        return [
            self.case("cross_entropy", logits, labels, -100, outputs=0, peer=lambda: loss(tensors[0])),
            Case(
                "cross_entropy_gradient", (gradient, logits, labels, log_sum, -100), 2 * logits.nbytes / 1e9, "GB/s",
                {}, backward(loss, gradient, logits),
            ),
            Case(
                "embedding_gradient", (hidden, ids, table, True, None), 3 * hidden.nbytes / 1e9, "GB/s",
                {}, (lambda: tensors[2].index_add_(0, tensors[3], tensors[4])) if torch else None,
            ),
        ]  # fmt: skip

    def optimizers(self) -> list[Case]:
        buffers = [self.normal(OPTIMIZED) for _ in range(3)] + [self.normal(OPTIMIZED) ** 2]
        tensors = tensors_of(*buffers)
        updated = UpdateBuffers(*buffers)
        rates = np.full(len(BOUNDS) - 1, 1e-4)
        return [
            self.case("squared_sums", buffers[0], BOUNDS, outputs=0, peer=lambda: tensors[0].norm() ** 2),
            self.case("adamw", updated, BOUNDS, FACTORS, SETTINGS, outputs=3, peer=torch_adamw(buffers)),
            self.case("lamb_moments", updated, BOUNDS, FACTORS, SETTINGS, outputs=2),
            # It writes the values, and does not read the gradients.
            self.case("lamb_update", updated, BOUNDS, rates, FACTORS, SETTINGS, outputs=0),
        ]


def target_of(parameter: np.ndarray) -> Target:
    return Target(np.empty_like(parameter), accumulate=False)


def tensors_of(*arrays: np.ndarray) -> list[Any]:
    return [torch.from_numpy(array) for array in arrays] if torch else []


def backward(forward: Callable[..., Any], gradient: np.ndarray, *arrays: np.ndarray) -> Callable[[], Any] | None:
    """Return what runs PyTorch's backward through `forward`, which is run once before."""
    if torch is None:
        return None
    inputs = [torch.from_numpy(array).requires_grad_() for array in arrays]
    output, weights = forward(*inputs), torch.from_numpy(gradient)
    return lambda: torch.autograd.grad(output, inputs, weights, retain_graph=True)


def torch_adamw(buffers: list[np.ndarray]) -> Callable[[], Any] | None:
    if torch is None:
        return None
    parameter = torch.nn.Parameter(torch.from_numpy(buffers[0].copy()))
    parameter.grad = torch.from_numpy(buffers[1])
    return torch.optim.AdamW([parameter], lr=1e-4, fused=True).step


def milliseconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - started)


def measure(case: Case, turns: int) -> str:
    """Return a line of the table."""

    def of(implementation: Any) -> Callable[[], Any]:
        return lambda: getattr(implementation, case.name)(*case.arguments, **case.settings)

    compiled = kernels.of(np.empty(0, np.float32))
    sides = [side for side in (of(compiled), of(reference), case.peer) if side is not None]
    for side in sides:
        side()
    times = [[milliseconds(side) for side in sides] for _ in range(turns)]
    ours = [turn[0] for turn in times]
    ratios = [statistics.median(turn[side] / turn[0] for turn in times) for side in range(1, len(sides))]
    median = statistics.median(ours)
    return (
        f"{f'{case.name} {case.label}':34}{median:9.3f}  {f'{min(ours):.3f} to {max(ours):.3f}':>20}"
        f"{1e3 * case.work / median:8.1f} {case.unit:8}" + "".join(f"{ratio:8.1f}" for ratio in ratios)
        + ("" if case.peer else "       -")
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", default="", help="the kernels whose name contains this")
    parser.add_argument("--precision", choices=typing.get_args(Precision), default="float32", help="of the products")
    options = parser.parse_args()
    kernels.set_precision(options.precision)
    if torch:
        torch.set_num_threads(threads.count())
        torch.set_autocast_enabled("cpu", options.precision == "bfloat16")
    print(f"{options.batch} sequences of {options.length}, width {WIDTH}, {threads.count()} threads")
    print(f"products in {options.precision} by {kernels.product_library()}; NumPy's and all else in float32")
    print(f"{'kernel':34}{'ms':>9}  {'spread':>20}{'rate':>8} {'':8}{'NumPy':>8}{'PyTorch':>8}")
    for case in Cases(options.batch, options.length).all():
        if options.only in case.name:
            print(measure(case, options.turns), flush=True)


if __name__ == "__main__":
    main()
