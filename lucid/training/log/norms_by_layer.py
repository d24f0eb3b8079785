"""Norms of the gradient and sizes of the update by layer, for the log: they show which layer drifts or stands still.

They come from sums over the blocks of the flat buffers, which are the same bits on any number of ranks.
"""

import re

import numpy as np

from lucid.backend import Array, array_module
from lucid.gpu_async import HostCopy
from lucid.nn.parameters import FlatParameters

_LAYER = re.compile(r"bert\.(encoder\.layer\.\d+)\.")
EMBEDDINGS, HEADS = "embeddings", "heads"


def layer_of(parameter: str) -> str:
    """Return the layer of a parameter, such as "encoder.layer.3": "embeddings", a layer of the encoder, or "heads".

    The pooler is one of the heads, and the decoder's weight, which is tied, one of the embeddings.
    """
    found = _LAYER.match(parameter)
    return found[1] if found else EMBEDDINGS if parameter.startswith("bert.embeddings.") else HEADS


class NormsByLayer:
    """Reduces sums over the blocks of `flat` to norms by layer."""

    def __init__(self, flat: FlatParameters) -> None:
        self._first_blocks = flat.first_blocks
        layers = [layer_of(segment.name) for segment in flat.segments]
        # From the input to the output.
        self._names = [EMBEDDINGS, *sorted({*layers} - {EMBEDDINGS, HEADS}, key=_number), HEADS]
        self._layers = np.array([self._names.index(layer) for layer in layers])

    def copy(self, gradients: Array, changes: Array) -> HostCopy:
        """Start to copy sums of squares to the host: those of the gradients, [blocks], and `changes`, [blocks, 2].

        `MomentOptimizer.step` returns the latter: of the update, and of the weights after it.
        """
        xp = array_module(gradients)
        return HostCopy(xp.concatenate([gradients[:, None], changes], axis=1))

    def metrics(self, squares: np.ndarray) -> dict[str, float]:
        """Return the norms by their names in the log, from the values of a `copy` that has arrived.

        `gradient_norm/LAYER` is the norm before clipping, `update_ratio/LAYER` the update's norm over the weights'.
        They are NaN after a step whose gradient is not finite, and the ratio where all weights are zero.
        """
        by_parameter = np.add.reduceat(squares, self._first_blocks, axis=0)
        totals = np.zeros((len(self._names), 3))
        np.add.at(totals, self._layers, by_parameter)
        if not np.isfinite(totals[:, 0].sum()):
            totals[:] = np.nan
        gradients, updates, weights = np.sqrt(totals).T
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = updates / weights
        columns = {"gradient_norm": gradients, "update_ratio": ratios}
        return {
            f"{column}/{name}": value
            for column, values in columns.items()
            for name, value in zip(self._names, values.tolist(), strict=True)
        }


def _number(layer: str) -> int:
    return int(layer.rpartition(".")[2])
