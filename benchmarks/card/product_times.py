"""How long each way to make a product takes that cuBLASLt offers: for those of BERT-base, and of its vocabulary.

With the bias added, or its gradient summed, by the product itself, and with a kernel that does it beside. Nothing is
kept of what is chosen here.
"""

from collections.abc import Callable, Mapping
from unittest import mock

import ml_dtypes
import numpy as np
from card.results import Results
from card.workloads import Workload

from lucid import kernels
from lucid.backend import Array, gpu_library
from lucid.distributed import connect
from lucid.kernels.cuda import algorithms, gemm, plans
from lucid.kernels.targets import Target
from lucid.training.graphs import rounded_up

# Inputs and outputs of BERT-base's layers, of queries, keys and values in one product, and of the vocabulary's scores:
# BERT's own, and one whose rows begin on multiples of 16 bytes.
LAYERS, VOCABULARIES = ((768, 768), (768, 2304), (768, 3072), (3072, 768)), ((768, 30_522), (768, 30_528))
TINY_LAYERS, TINY_VOCABULARIES = ((32, 32), (32, 64)), ((32, 250), (32, 256))


def check(results: Results, tiny: bool) -> bool:
    """Add a line for each product."""
    connect("single", "cuda")
    workload = Workload.of("tiny", 16, None, 0.1) if tiny else Workload.of("base", 128, None, 0.1)
    size = workload.rows * workload.length, workload.masked_tokens, workload.rows
    rows, labelled, _ = rounded_up(size, workload.rows, workload.length)
    vocabularies = TINY_VOCABULARIES if tiny else VOCABULARIES
    for count, shapes in ((labelled, vocabularies), (rows, TINY_LAYERS if tiny else LAYERS)):
        for inputs, outputs in shapes:
            for name, product in products(count, inputs, outputs):
                add(results, f"{name}, {count} rows, {inputs} to {outputs}", 2 * count * inputs * outputs, product)
    return True


def products(rows: int, inputs: int, outputs: int) -> list[tuple[str, Callable[[], object]]]:
    """Return what a linear layer of bfloat16 asks for in training, as names and calls."""
    x, gradient, weight = (numbers(*shape) for shape in ((rows, inputs), (rows, outputs), (outputs, inputs)))
    cupy = gpu_library()
    bias = cupy.zeros(outputs, np.float32)
    targets = [Target(cupy.zeros(shape, np.float32), False) for shape in ((outputs, inputs), outputs)]
    y, by_x = cupy.empty((rows, outputs), x.dtype), cupy.empty((rows, inputs), x.dtype)
    return [
        ("forward", lambda: gemm.linear(x, weight, bias, y)),
        ("gradient of the input", lambda: gemm.linear_input_gradient(gradient, weight)),
        ("gradient added to another", lambda: gemm.linear_input_gradient(gradient, weight, by_x)),
        ("gradients of weight and bias", lambda: gemm.linear_weight_gradient(gradient, x, *targets)),
    ]


def numbers(*shape: int) -> Array:
    """Return random numbers in bfloat16 on the card; with zeros a product takes less power and time."""
    some = np.random.default_rng(0).standard_normal(2**20 + 7, np.float32).astype(ml_dtypes.bfloat16)
    return gpu_library().asarray(np.resize(some.view(np.uint16), shape)).view(some.dtype)


def add(results: Results, name: str, flops: int, product: Callable[[], object]) -> None:
    """Have a product made, and add what each way to do so took."""
    found: dict[int, float] = {}

    def timed(card: str, product: str, seconds: Callable[[], Mapping[int, float]]) -> int:
        found.update(seconds())
        return algorithms.fastest(found)

    plans.plan_of.cache_clear()
    with kernels.timed_products(), mock.patch.object(algorithms, "chosen", timed):
        product()
    if not found:
        return
    number, first = algorithms.fastest(found), next(iter(found.values()))
    results.add(
        product=name,
        first_us=1e6 * first,
        fastest_us=1e6 * found[number],
        fastest=number,
        gain=1 - found[number] / first,
        tflops=flops / found[number] / 1e12,
        whole_us=[1e6 * seconds for each, seconds in found.items() if each < plans.TRIED],
        beside_us=[1e6 * seconds for each, seconds in found.items() if each >= plans.TRIED],
    )
