"""The rate of products: of each product of a layer, in the precision and by the kernels in use."""

import math
from collections import Counter, defaultdict

import ml_dtypes
import numpy as np
import pytest

from lucid import kernels
from lucid.analysis.product_rate import product_rate
from lucid.kernels import reference


class Spy:
    """Kernels that count the products, and note the shapes of their factors and the types of their results."""

    def __init__(self):
        self.calls, self.shapes, self.types = Counter(), set(), defaultdict(set)
        self.kernels = reference

    def product_input(self, x):
        return self.kernels.product_input(x)

    def __getattr__(self, name):
        def call(*arguments):
            self.calls[name] += 1
            self.shapes |= {array.shape for array in arguments if hasattr(array, "shape")}
            result = getattr(self.kernels, name)(*arguments)
            self.types[name].add((arguments[2].out if result is None else result).dtype.type)
            return result

        return call


@pytest.fixture
def spy(monkeypatch):
    spy, products_of = Spy(), kernels.products_of

    def spied(array):
        spy.kernels = products_of(array)
        return spy

    monkeypatch.setattr(kernels, "products_of", spied)
    return spy


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_is_of_the_kernels_that_the_array_has(dtype):
    rate = product_rate([(24, 8), (8, 24)], 16, np.zeros(0, dtype))
    assert 0 < rate < math.inf


def test_forward_and_both_gradients_count_alike(spy):
    product_rate([(6, 4), (4, 6)], 3, np.zeros(0, np.float32))
    assert spy.calls["linear"] == spy.calls["linear_input_gradient"] == spy.calls["linear_weight_gradient"] > 0
    assert spy.shapes == {(3, 4), (3, 6), (4, 6), (6, 4)}


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_on_a_gpu_many_products_go_between_two_waits(spy, dtype, device_counts):
    import cupy

    waits = device_counts.host_waits
    assert 0 < product_rate([(6, 4)], 3, cupy.zeros(0, dtype)) < math.inf
    assert device_counts.host_waits - waits <= spy.calls.total() / 10
    assert spy.types == {"linear": {dtype}, "linear_input_gradient": {dtype}, "linear_weight_gradient": {np.float32}}


def test_many_rows_do_not_make_it_long(spy):
    product_rate([(4, 4)], 1_000_000, np.zeros(0, np.float32))
    assert max(rows for rows, _ in spy.shapes) <= 512
