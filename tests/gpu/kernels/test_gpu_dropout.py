"""Invariant 4: the CUDA kernels of dropout agree with the reference, on a GPU and in the emulation."""

import numpy as np
import pytest
from kernel_arguments import PURPOSE, normal
from tolerances import SHAPES, TOLERANCES

from lucid.kernels import reference
from lucid.kernels.arguments import Dropout
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates


@pytest.mark.parametrize("shape", [*SHAPES, (3,), (2, 3, 2, 5), (1, 1, 4097)])
@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_dropout_equals_the_reference_bit_for_bit(machine, shape, probability):
    x = normal(*shape)
    for seed, step in ((0, 0), (2**64 - 1, 2**32 - 1)):
        coordinates = Coordinates.of(seed, step, np.arange(shape[0]) + 2**32 - 2)
        settings = x, Dropout(probability, PURPOSE, coordinates)
        np.testing.assert_array_equal(machine.run("dropout", *settings)[0], reference.dropout(*settings))


def test_token_rows_draw_the_dropout_of_their_grid(machine, element):
    grid, mask = normal(3, 70, 32, dtype=element), np.arange(70) < np.array([[70], [1], [25]])
    coordinates, sequences = Coordinates.of(7, 2, np.array([9, 4, 5])), Sequences.unpadded(mask, mask)
    [expected] = machine.run("dropout", grid, Dropout(0.3, PURPOSE, coordinates))
    of_rows = Dropout(0.3, PURPOSE, sequences.coordinates(coordinates))
    [got] = machine.run("dropout", sequences.rows_of(grid), of_rows)
    np.testing.assert_array_equal(got, expected[mask])


def test_nan_survives_dropout(machine):
    x = np.full((1, 1000), np.nan, np.float32)
    assert np.isnan(machine.run("dropout", x, Dropout(0.5, PURPOSE, Coordinates.of(0, 0, np.arange(1))))[0]).all()


def test_dropout_follows_new_values_of_its_counters(machine, element, expected):
    x, coordinates = normal(3, 40, dtype=element), Coordinates.of(1 << 40 | 9, 2**31 + 5, np.arange(3) + 2**33)
    dropout = Dropout(0.4, PURPOSE, machine.put(Coordinates.of(1 << 40 | 9, 4, np.arange(3))))
    machine.run("dropout", x, dropout)
    dropout.coordinates.counters[...] = machine.put(coordinates.counters)
    [got] = machine.run("dropout", x, dropout)
    right = expected("dropout", x, Dropout(0.4, PURPOSE, coordinates))
    machine.compare("dropout", element.name, got.astype(np.float64), right, TOLERANCES[element.name])
    assert (got == 0).any()
