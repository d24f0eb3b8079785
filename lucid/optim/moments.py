"""What AdamW and LAMB have in common: two running moments of each number that this process updates.

On a GPU a step neither waits for it nor needs to: what changes from step to step is in its memory, and kernels skip an
update by themselves.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lucid import kernels
from lucid.backend import Array, array_module, device_of, to_device, to_host
from lucid.nn.parameters import UpdateSlice
from lucid.optim.partition import Partition


class MomentOptimizer:
    """Holds the moments and the count of updates; a subclass says how a step uses them.

    `betas` are the decay rates of the moments, `epsilon` the term beside the root of the second, `weight_decay` is
    decoupled and applies to parameters with two or more dimensions. `bias_correction=False` is what the original BERT
    did.
    """

    def __init__(
        self,
        partition: Partition,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
    ) -> None:
        self.partition = partition
        self.flat = flat = partition.flat
        self.betas = betas
        self.epsilon = epsilon
        self.weight_decay = weight_decay
        self.bias_correction = bias_correction
        xp = array_module(flat.values)
        self._updates: Array = xp.zeros(1, np.int64)
        # Of the elements that this process updates: slice after slice.
        count = sum(part.state.stop - part.state.start for part in partition.slices)
        self.first_moments: Array = xp.zeros(count, flat.values.dtype)
        self.second_moments: Array = xp.zeros(count, flat.values.dtype)

    @property
    def updates(self) -> int:
        """How many updates were made. On a GPU this waits for it."""
        return int(to_host(self._updates)[0])

    def step(self, learning_rate: float | Array, gradient_scale: float | Array = 1.0) -> None:
        """Update the parameters in place from their gradients times `gradient_scale`. All ranks call this.

        Where the scale is not a finite number, nothing changes, the count of updates included. Both arguments may be
        float64 arrays of no dimensions, of the library of the values: a step that is captured on a GPU takes them so.
        """
        flat = self.flat
        betas = self.betas if self.bias_correction else None
        self.update(kernels.of(flat.values).update_factors(learning_rate, gradient_scale, self._updates, betas))
        self.partition.publish()
        if not self.partition.is_whole:
            flat.round()

    def update(self, factors: Array) -> None:
        """Update what is this process's; `factors` are of `Kernels.update_factors`."""
        raise NotImplementedError

    def _buffers_of(self, part: UpdateSlice) -> tuple[Array, Array, Array]:
        """Return the values of a part and both of their moments."""
        return self.flat.values[part.elements], self.first_moments[part.state], self.second_moments[part.state]

    def _decay_of(self, part: UpdateSlice) -> float:
        return self.weight_decay if part.decay else 0.0

    def _bfloat16_copy_of(self, part: UpdateSlice) -> Array | None:
        """Return the bfloat16 copy of a part, or None if the whole buffer is rounded after it is gathered."""
        flat = self.flat
        return flat.bfloat16_copy[part.elements] if flat.bfloat16_copy is not None and self.partition.is_whole else None

    def state_dict(self, kept: dict[str, Array] | None = None) -> dict[str, Array]:
        """Return the moments by parameter, in host memory: `first_moment.<name>` and `second_moment.<name>`.

        All ranks call this; the first alone gets them. With `kept` they are copies in its buffers, which the first call
        makes. Without, they are the moments themselves if this process updates all, or else copies.
        """
        flat, buffers = self.flat, self._moments()
        if kept is not None or not self.partition.is_whole:
            kept = {} if kept is None else kept
            for kind, own in buffers.items():
                if kind not in kept:
                    kept[kind] = np.empty(len(flat.values), own.dtype)
                self.partition.gather(to_host(own), kept[kind])
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
            in_host_memory = to_host(own)
            self.partition.scatter(buffers.get(kind), in_host_memory)
            if in_host_memory is not own:
                own[...] = to_device(in_host_memory, device_of(own))
        self._updates[...] = updates

    def _moments(self) -> dict[str, Array]:
        return {"first_moment": self.first_moments, "second_moment": self.second_moments}
