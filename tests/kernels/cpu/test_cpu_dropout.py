"""Invariant 4: the compiled kernels of dropout agree with the reference."""

import numpy as np
import pytest
from agreement import SHAPES, of_rows
from kernel_arguments import PURPOSE, normal

from lucid.kernels import reference
from lucid.kernels.arguments import Dropout
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates


@pytest.mark.parametrize("shape", [*SHAPES, (3,), (2, 3, 2, 5), (1, 1, 4097)])
@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_dropout_equals_the_reference_bit_for_bit(cpu, shape, probability):
    x = normal(*shape)
    for seed, step in ((0, 0), (2**64 - 1, 2**32 - 1)):
        coordinates = Coordinates.of(seed, step, np.arange(shape[0]) + 2**32 - 2)
        dropout = Dropout(probability, PURPOSE, coordinates)
        np.testing.assert_array_equal(cpu.dropout(x, dropout), reference.dropout(x, dropout))


def test_token_rows_draw_the_dropout_of_their_grid(cpu):
    grid, mask = normal(3, 70, 33), np.arange(70) < np.array([[70], [1], [25]])
    dropout = Dropout(0.3, PURPOSE, Coordinates.of(7, 2, np.array([9, 4, 5])))
    sequences = Sequences.unpadded(mask, mask)
    expected = cpu.dropout(grid, dropout)[mask]
    for kernel in (cpu, reference):
        got = kernel.dropout(sequences.rows_of(grid), of_rows(dropout, sequences))
        np.testing.assert_array_equal(got, expected)


def test_nan_survives_dropout(cpu):
    x = np.full((1, 1000), np.nan, np.float32)
    assert np.isnan(cpu.dropout(x, Dropout(0.5, PURPOSE, Coordinates.of(0, 0, np.arange(1))))).all()
