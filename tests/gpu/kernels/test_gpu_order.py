"""CUDA kernels give the same bits in any order of their work, and take arrays of any layout."""

import numpy as np
import pytest
from kernel_arguments import PURPOSE, RANDOM, normal
from targets import call

from lucid.kernels.arguments import Dropout
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates


class TestOrder:
    """Results have the same bits in every run and at every position of a row."""

    def test_a_second_run_gives_the_same_bits(self, machine, element):
        x, gradient = normal(2, 200, 40, dtype=element), normal(2, 200, 40, dtype=element)
        weight, ids = normal(40), RANDOM.integers(0, 3, (2, 200))
        dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(2)))

        def run():
            made = machine.run("dropout_add_layer_norm", x, weight, x, weight, weight, 1e-12, dropout)
            arguments = gradient, made[1], weight, *made[2:], dropout
            table = normal(3, 40) * 0
            machine.update("embedding_gradient", [gradient, ids, table], False, None)
            by_activation = machine.run("activation_gradient", gradient, x, weight, "gelu")
            return [*made, *machine.run("dropout_add_layer_norm_gradient", *arguments), *by_activation, table]

        for one, other in zip(run(), run(), strict=True):
            np.testing.assert_array_equal(one, other)

    # The emulation can run the threads of a block in any order; on a GPU this is one more run.
    @pytest.mark.parametrize("order", ["last first", "1", "2"])
    def test_the_order_of_threads_and_copies_changes_no_bit(self, machine, element, order, monkeypatch):
        x, gradient, bias = normal(150, 64, dtype=element), normal(150, 64, dtype=element), normal(64)
        ids, sequences = RANDOM.integers(0, 3, 150), Sequences.padded(np.zeros((2, 75)), None)
        joined, dropout = normal(150, 192, dtype=element), Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(150)))
        of_rows = Dropout(0.3, PURPOSE, sequences.coordinates(Coordinates.of(3, 1, ids[:2])))

        def run():
            made = machine.run("dropout_add_layer_norm", x, bias, x, bias, bias, 1e-12, dropout)
            made += machine.run("dropout_add_layer_norm_gradient", gradient, made[1], bias, *made[2:], dropout)
            made += machine.run("activation_gradient", gradient, x, bias, "gelu")
            made += machine.run("linear_bias_gradient", gradient)
            losses = machine.run("cross_entropy", x, ids, -100)
            made += *losses, *machine.run("cross_entropy_gradient", bias[ids], x, ids, losses[1], -100)
            made += machine.run("argmax", x)
            table = np.zeros((3, 64), np.float32)
            machine.update("embedding_gradient", [gradient, ids, table], False, None)
            settings = machine.put((sequences, 2, of_rows))
            output, saved = machine.kernels.attention(machine.put(joined), *settings)
            by_joined = machine.kernels.attention_gradient(machine.put(gradient), machine.put(joined), saved, *settings)
            return *made, table, machine.get(output), machine.get(by_joined)

        first = run()
        monkeypatch.setenv("EMULATED_ORDER", order)
        for one, other in zip(first, run(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_a_sample_gives_the_same_bits_alone_and_in_a_batch(self, machine, element):
        x, residual, weight = normal(3, 50, 48, dtype=element), normal(3, 50, 48, dtype=element), normal(48)
        together, alone = (Dropout(0.2, PURPOSE, Coordinates.of(3, 1, np.array(each))) for each in ([0, 1, 2], [2]))
        tail = weight, weight, 1e-12
        whole = machine.run("dropout_add_layer_norm", x, weight, residual, *tail, together)[0]
        part = machine.run("dropout_add_layer_norm", x[2:], weight, residual[2:], *tail, alone)[0]
        np.testing.assert_array_equal(whole[2:], part)


def test_kernels_take_arrays_that_are_not_in_c_order(machine, element):
    x = normal(6, 8, dtype=element)
    on_device = machine.put(x)
    got = machine.get(machine.kernels.activation(on_device.T, None, "relu"))
    np.testing.assert_array_equal(got, np.maximum(x.T, 0))
    [got] = call(machine.kernels, "linear_bias_gradient", on_device[:, ::2])
    np.testing.assert_allclose(machine.get(got), x[:, ::2].astype(np.float32).sum(axis=0), rtol=1e-5, atol=1e-5)


def test_kernels_take_arrays_with_any_alignment(machine, element):
    x = normal(1 + 4 * 16, dtype=element)
    got = machine.get(machine.kernels.activation(machine.put(x)[1:].reshape(4, 16), None, "relu"))
    np.testing.assert_array_equal(got, np.maximum(x[1:].reshape(4, 16), 0))
