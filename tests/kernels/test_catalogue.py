"""Law 4's ground: an implementation has the catalogue's kernels, each with the catalogue's signature."""

import inspect

import numpy as np
import pytest

from lucid import kernels
from lucid.kernels import Kernels, reference

CATALOGUE = {
    name: function for name, function in vars(Kernels).items() if inspect.isfunction(function) and name[0] != "_"
}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_reference_has_the_signature_of_the_catalogue(name):
    expected = inspect.signature(CATALOGUE[name]).parameters
    got = inspect.signature(getattr(reference, name)).parameters
    assert list(got) == list(expected)[1:]
    for parameter in got.values():
        assert (parameter.kind, parameter.default) == (expected[parameter.name].kind, expected[parameter.name].default)


def test_every_kernel_is_documented():
    assert all(function.__doc__ for function in CATALOGUE.values())


def test_the_reference_has_no_kernel_of_its_own():
    own = {
        name
        for name, function in vars(reference).items()
        if inspect.isfunction(function) and function.__module__ == reference.__name__ and not name.startswith("_")
    }
    assert own == CATALOGUE.keys()


def test_a_numpy_array_gets_the_reference():
    assert kernels.of(np.zeros(1)) is reference


def test_squares_are_summed_in_double_precision_over_blocks():
    values = np.random.default_rng(0).standard_normal(200_001).astype(np.float32)
    expected = sum(float(value) ** 2 for value in values)
    assert float(reference.squared_sum(values)) == pytest.approx(expected, rel=1e-12)
