"""Arguments for tests of kernels, compiled and on a GPU."""

import numpy as np

from lucid.kernels.arguments import NO_DROPOUT, AdamSettings, Dropout, UpdateBuffers
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates

RANDOM = np.random.default_rng(5)
PURPOSE = 1 << 16
PROBABILITIES = [0.0, 0.1, 0.5]
ADAM = AdamSettings(betas=(0.9, 0.98), epsilon=1e-6, weight_decay=0.1)
# The learning rate, the gradient scale, and both bias corrections.
FACTORS = np.array([1e-2, 0.3, 1 / 0.19, 1 / 0.2])


def normal(*shape, scale=1.0, dtype=np.float32):
    return (RANDOM.standard_normal(shape) * scale).astype(dtype)


def dropout_of(probability, samples):
    """Dropout of so many samples."""
    if probability == 0:
        return NO_DROPOUT
    coordinates = Coordinates.of(seed=1 << 40 | 9, step=4, samples=np.arange(samples) * 7 + 2)
    return Dropout(probability, PURPOSE + 3, coordinates)


def sequences_of(lengths, holes=False):
    """Sequences of these lengths from a grid one column longer than the longest; with holes, some rows are no keys."""
    length = max(lengths) + 1
    mask = np.arange(length) < np.array(lengths)[:, None]
    if holes:
        mask[:, :-2] &= RANDOM.random((len(lengths), length - 2)) < 0.7
        mask[np.arange(len(lengths)), np.array(lengths) - 1] = True
    return Sequences.unpadded(mask, mask)


def buffers_of(count, bfloat16_copy=None):
    return UpdateBuffers(normal(count), normal(count), normal(count), normal(count) ** 2, bfloat16_copy)


def arguments_of_gradients(width, dtype=np.float32):
    """The arguments, without targets, of all kernels that write gradients to targets, by name."""
    x, gradient = (normal(2, 70, width, dtype=dtype) for _ in range(2))
    weight, statistics = normal(width), np.abs(normal(140, 1))
    dropout = Dropout(0.3, PURPOSE, Coordinates.of(3, 1, np.arange(2)))
    return {
        "linear_bias_gradient": (gradient,),
        "activation_gradient": (gradient, x, weight, "gelu"),
        "layer_norm_gradient": (gradient, x, weight, statistics, statistics),
        "dropout_add_layer_norm_gradient": (gradient, x, weight, statistics, statistics, dropout),
    }
