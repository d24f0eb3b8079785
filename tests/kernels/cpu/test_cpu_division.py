"""Compiled kernels give the same bits however their work is divided, and take arrays of any layout."""

import threading

import numpy as np
import pytest
from agreement import lamb_steps, of_rows
from kernel_arguments import ADAM, FACTORS, PURPOSE, RANDOM, normal, sequences_of
from targets import call

from lucid.kernels import threads
from lucid.kernels.arguments import Dropout, UpdateBuffers
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates


class TestDivision:
    """Results do not depend on the position of a row, or on the number of threads."""

    @pytest.fixture
    def every_kernel(self, cpu):
        """A function that runs kernels over 3 x 200 rows and returns all their results."""
        x, residual, gradient = (normal(3, 200, 331) for _ in range(3))
        weight, bias = normal(331), normal(331)
        logits, labels = normal(600, 331), RANDOM.integers(0, 331, 600)
        dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(3)))
        values, bounds = normal(400_000), np.arange(0, 400_001, 12_500)

        def run():
            y, total, mean, reciprocal = cpu.dropout_add_layer_norm(x, bias, residual, weight, bias, 1e-12, dropout)
            _, log_sum = cpu.cross_entropy(logits, labels, -100)
            optimized = [values.copy() for _ in range(2)]
            cpu.adamw(UpdateBuffers(optimized[0], values, optimized[1], values**2), bounds, FACTORS, ADAM)
            by_lamb = UpdateBuffers(values.copy(), values, values.copy(), values**2)
            squares = lamb_steps(cpu, by_lamb, bounds)
            joined, sequences = x.reshape(600, 331)[:, :312], sequences_of([200, 130, 270])
            settings = sequences, 4, of_rows(dropout, sequences)
            attended, probabilities = cpu.attention(joined, *settings)
            return [
                attended, cpu.attention_gradient(attended, joined, probabilities, *settings),
                y, total, log_sum, *optimized, *by_lamb[:4], *squares, cpu.squared_sums(values, bounds),
                cpu.dropout(x, dropout),
                cpu.activation(x, bias, "gelu"), *call(cpu, "activation_gradient", gradient, x, bias, "gelu"),
                *cpu.layer_norm(x, weight, bias, 1e-12), *call(cpu, "linear_bias_gradient", gradient),
                *call(cpu, "layer_norm_gradient", gradient, total, weight, mean, reciprocal),
                *call(cpu, "dropout_add_layer_norm_gradient", gradient, total, weight, mean, reciprocal, dropout),
                cpu.cross_entropy_gradient(log_sum, logits, labels, log_sum, -100),
            ]  # fmt: skip

        return run

    def test_any_number_of_threads_gives_the_same_bits(self, every_kernel, monkeypatch):
        monkeypatch.setattr(threads, "_limit", 1)
        alone = every_kernel()
        monkeypatch.setattr(threads, "_limit", 3)
        for one, other in zip(alone, every_kernel(), strict=True):
            np.testing.assert_array_equal(one, other)

    def test_work_of_any_size_uses_the_allowed_threads(self, monkeypatch):
        monkeypatch.setattr(threads, "_limit", 5)
        before = set(threading.enumerate())
        for parts in (2, 3, 4, 5, 9):
            done = []
            threads.split(parts, 1_000_000, done.append)
            assert sorted(number for part in done for number in range(parts)[part]) == list(range(parts))
        assert len(set(threading.enumerate()) - before) <= 4

    def test_a_sequence_gives_the_same_bits_alone_and_in_a_batch(self, cpu):
        joined, gradient = normal(70, 24), normal(70, 8)
        dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(3)))
        together = sequences_of([20, 40, 10])
        alone = Sequences.unpadded(np.ones((1, 41), bool), np.arange(41)[None] < 40)
        of_all = together, 2, of_rows(dropout, together)
        of_one = alone, 2, of_rows(Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.array([1]))), alone)
        whole, probabilities = cpu.attention(joined, *of_all)
        part, own = cpu.attention(joined[20:60], *of_one)
        np.testing.assert_array_equal(whole[20:60], part)
        whole = cpu.attention_gradient(gradient, joined, probabilities, *of_all)
        np.testing.assert_array_equal(
            whole[20:60], cpu.attention_gradient(gradient[20:60], joined[20:60], own, *of_one)
        )

    def test_a_sample_gives_the_same_bits_alone_and_in_a_batch(self, cpu):
        x, residual, weight, bias = normal(3, 50, 33), normal(3, 50, 33), normal(33), normal(33)
        together, alone = (Dropout(0.2, PURPOSE, Coordinates.of(3, 1, np.array(each))) for each in ([0, 1, 2], [2]))
        tail = weight, bias, 1e-12
        whole = cpu.dropout_add_layer_norm(x, bias, residual, *tail, together)[0]
        part = cpu.dropout_add_layer_norm(x[2:], bias, residual[2:], *tail, alone)[0]
        np.testing.assert_array_equal(whole[2:], part)
        for count in range(1, 34):
            part = cpu.activation(x[..., :count].copy(), bias[:count].copy(), "gelu")
            np.testing.assert_array_equal(part, cpu.activation(x, bias, "gelu")[..., :count])


def test_kernels_take_arrays_that_are_read_only_or_not_in_c_order(cpu):
    x = normal(6, 5)
    x.flags.writeable = False
    np.testing.assert_array_equal(cpu.activation(x.T, None, "relu"), np.maximum(x.T, 0))
    stretched = np.broadcast_to(np.float32(2), (6, 5))
    np.testing.assert_array_equal(call(cpu, "linear_bias_gradient", stretched)[0], np.full(5, 12))
