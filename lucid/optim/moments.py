"""What AdamW and LAMB have in common: two running moments of each number that this process updates."""

from collections.abc import Callable, Mapping

import numpy as np

from lucid.backend import Array, array_module, to_host
from lucid.nn.parameters import FlatParameters


class MomentOptimizer:
    """Holds the moments and the count of updates; a subclass says how a step uses them.

    `betas` are the decay rates of the moments, `epsilon` the term beside the root of the second, `weight_decay` is
    decoupled and applies to parameters with two or more dimensions. `bias_correction=False` is what the original BERT
    did.
    """

    def __init__(
        self,
        flat: FlatParameters,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
    ) -> None:
        self.flat = flat
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.bias_correction = bias_correction
        self.updates = 0
        # Of what this process updates: its parts, one after the other.
        xp = array_module(flat.values)
        self.first_moments: Array = xp.zeros(flat.ownership.count, flat.values.dtype)
        self.second_moments: Array = xp.zeros(flat.ownership.count, flat.values.dtype)

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Update the parameters in place from their gradients times `gradient_scale`. All ranks call this."""
        self.updates += 1
        corrections = (1.0, 1.0)
        if self.bias_correction:
            corrections = (1 - self.betas[0] ** self.updates, 1 - self.betas[1] ** self.updates)
        self.update(learning_rate, gradient_scale, corrections)
        self.flat.ownership.publish()

    def update(self, learning_rate: float, gradient_scale: float, corrections: tuple[float, float]) -> None:
        raise NotImplementedError

    def state_dict(self, kept: dict[str, Array] | None = None) -> dict[str, Array]:
        """Return the moments by parameter, in host memory: `first_moment.<name>` and `second_moment.<name>`.

        All ranks call this; the first alone gets them. With `kept` they are copies in its buffers, which the first call
        makes. Without, they are the moments themselves if this process updates all, or else copies.
        """
        flat, buffers = self.flat, self._moments()
        if kept is not None or not flat.ownership.is_whole:
            kept = {} if kept is None else kept
            for kind, own in buffers.items():
                if kind not in kept:
                    kept[kind] = np.empty(len(flat.values), own.dtype)
                flat.ownership.gather(to_host(own), kept[kind])
            buffers = kept
        return {
            f"{kind}.{name}": to_host(array)
            for kind, buffer in buffers.items()
            for name, array in flat.views(buffer).items()
        }

    def lay_out(self, moment: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
        """Return the moments as `restore` takes them; `moment` returns those of a name that `state_dict` gave.

        Raises `ValueError` if one has another shape.
        """
        buffers = {}
        for kind in self._moments():
            buffers[kind] = np.zeros(len(self.flat.values), self.flat.values.dtype)
            for name, array in self.flat.views(buffers[kind]).items():
                found = moment(f"{kind}.{name}")
                if found.shape != array.shape:
                    raise ValueError(f"{kind}.{name} has shape {found.shape}, not {array.shape}")
                array[...] = found
        return buffers

    def restore(self, buffers: Mapping[str, np.ndarray], updates: int) -> None:
        """Take over the first rank's `buffers`, of `lay_out`, and the count of updates behind them.

        All ranks call this.
        """
        for kind, own in self._moments().items():
            self.flat.ownership.scatter(buffers.get(kind), own)
        self.updates = updates

    def _moments(self) -> dict[str, Array]:
        return {"first_moment": self.first_moments, "second_moment": self.second_moments}
