"""The common base of AdamW and LAMB: two running moments of each number that this process updates.

On a GPU the host never waits in a step: the numbers that change from step to step are in the GPU's memory, and the
kernels themselves skip an update whose gradients are not finite.
"""

from collections.abc import Callable, Mapping

import numpy as np

from lucid import kernels
from lucid.backend import Array, array_module, device_of, to_device, to_host
from lucid.errors import some
from lucid.kernels.arguments import AdamSettings, UpdateBuffers
from lucid.nn.parameters import Parameters, UpdateSlice
from lucid.optim.clipping import global_norm
from lucid.optim.partition import OneProcess, Partition, partition_of


class MomentOptimizer:
    """Holds the moments and the count of updates; a subclass defines `update`.

    `parameters` are those of a module, `model.parameters()`, of which `DistributedDataParallel` may have made this rank
    update a part; or a `Partition`. They are moved into flat buffers, unless they are there already: a module is moved
    to another device or dtype before. A parameter without gradient counts as one with a gradient of zero.

    `lr` is the learning rate of the updates, a number that may be set anew before each. `betas` are the decay rates of
    the moments; `eps` is added to the root of the second moment. `weight_decay` is decoupled and applies to parameters
    with two or more dimensions alone. The original BERT has `bias_correction=False`.

    Raises `TypeError` for what are no parameters, `ValueError` for a negative `lr`, for a part of the parameters of a
    module that is in flat buffers, and for parameters of several dtypes or devices.
    """

    def __init__(
        self,
        parameters: Parameters | Partition,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        bias_correction: bool = True,
    ) -> None:
        if not lr >= 0:
            raise ValueError(f"lr is {lr}; it takes a number from 0 on")
        self.partition, self.lr = partition_of(parameters), lr
        self.flat = flat = self.partition.flat
        # Nothing else writes zeros where backward has not been.
        self._fills_gradients = self.partition is not parameters and isinstance(self.partition, OneProcess)
        self._settings = AdamSettings(betas, eps, weight_decay)
        self._settings_without_decay = AdamSettings(betas, eps, 0.0)
        self._corrected_betas = betas if bias_correction else None
        xp = array_module(flat.values)
        self._updates: Array = xp.zeros(1, np.int64)
        self._squares: Array | None = None  # of the step that is measured
        # The elements that this process updates, slice after slice.
        count = sum(part.state.stop - part.state.start for part in self.partition.slices)
        self.first_moments: Array = xp.zeros(count, flat.values.dtype)
        self.second_moments: Array = xp.zeros(count, flat.values.dtype)

    @property
    def updates(self) -> int:
        """The number of updates so far. On a GPU the host waits for it."""
        return int(to_host(self._updates)[0])

    def zero_grad(self) -> None:
        """Forget all gradients, to begin a step. With `DistributedDataParallel`, call its `zero_grad` instead."""
        self.flat.zero_grad()

    def gradient_norm(self) -> Array:
        """Return the `global_norm` of the gradients, for `clip_scale`. All ranks call this."""
        self._fill_gradients()
        return global_norm(self.partition)

    def _fill_gradients(self) -> None:
        if self._fills_gradients:
            if not any(parameter.has_gradient for parameter in self.flat.parameters):
                raise RuntimeError("no parameter has a gradient: call backward between zero_grad and step")
            self.flat.zero_unset_gradients()

    def step(
        self,
        learning_rate: float | Array | None = None,
        gradient_scale: float | Array = 1.0,
        measured: bool = False,
    ) -> Array | None:
        """Update the parameters in place from their gradients times `gradient_scale`. All ranks call this.

        The update has the learning rate `lr`, unless `learning_rate` is another one. Raises `RuntimeError` if there is
        no gradient.

        If the update is to be `measured`, return float64 [blocks, 2]: the sums of the squares of the change in each
        block, and of the values after it. This changes no bit of the update.

        If the scale is not finite, nothing changes, not even the count of updates. Both arguments may be float64 arrays
        of no dimensions on the device of the values, as a captured step on a GPU needs them.
        """
        flat = self.flat
        self._fill_gradients()
        factors = kernels.of(flat.values).update_factors(
            self.lr if learning_rate is None else learning_rate, gradient_scale, self._updates, self._corrected_betas
        )
        squares = array_module(flat.values).zeros((len(flat.bounds) - 1, 2), np.float64) if measured else None
        self._squares = squares
        self.update(factors)
        if squares is not None:
            self.partition.complete(squares)
        self.partition.publish()
        if not self.partition.publishes_copy:
            flat.round()
        return squares

    def update(self, factors: Array) -> None:
        """Update this process's slices of the parameters; `Kernels.update_factors` returned `factors`."""
        raise NotImplementedError

    def _squares_of(self, part: UpdateSlice) -> Array | None:
        """Return where the update of a slice writes its sums of squares, if it is measured."""
        return None if self._squares is None else self._squares[part.blocks]

    def _buffers_of(self, part: UpdateSlice) -> UpdateBuffers:
        """Return the arrays of a slice, without the bfloat16 copy if `step` rounds the whole buffer after gathering."""
        flat, elements, state = self.flat, part.elements, part.state
        copy = flat.bfloat16_copy if self.partition.publishes_copy else None
        return UpdateBuffers(
            flat.values[elements],
            flat.gradients[elements],
            self.first_moments[state],
            self.second_moments[state],
            None if copy is None else copy[elements],
        )

    def _settings_of(self, part: UpdateSlice) -> AdamSettings:
        return self._settings if part.decay else self._settings_without_decay

    def state_dict(self) -> dict[str, Array]:
        """Return `moments` and, as `updates`, their count (int64): all that the next updates depend on.

        All ranks call this; only the first rank's result is complete. The moments may be those in use, and not copies.
        """
        return {**self.moments(), "updates": np.array(self.updates)}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Load what `state_dict` has returned to the first rank, perhaps of another number of ranks.

        All ranks load the same state, of which each keeps its part; they do not communicate. Raises a `ValueError` that
        names what is missing or has another shape.
        """
        names = [f"{kind}.{segment.name}" for kind in self._buffers() for segment in self.flat.segments]
        missing = [name for name in (*names, "updates") if name not in state]
        if missing:
            raise ValueError(f"load_state_dict: missing {some(missing)}: the state is of other parameters")
        for kind, whole in self.lay_out(lambda name: np.asarray(state[name])).items():
            own = self._buffers()[kind]
            for part in self.partition.slices:
                own[part.state] = to_device(whole[part.elements], device_of(own))
        self._updates[...] = int(state["updates"])

    def moments(self, kept: dict[str, Array] | None = None) -> dict[str, Array]:
        """Return the moments by parameter, in host memory: `first_moment.<name>` and `second_moment.<name>`.

        All ranks call this; only the first rank's result is complete. With `kept` the moments are copied into its
        buffers, which the first call allocates. Without it they are the moments themselves if this process updates
        all parameters, and copies otherwise.
        """
        flat, buffers = self.flat, self._buffers()
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
        """Return the buffers for `restore`; `moment` returns the array of each name in `moments`.

        Raises `ValueError` if an array has another shape than its parameter.
        """
        buffers = {}
        for kind in self._buffers():
            buffers[kind] = np.zeros(len(self.flat.values), self.flat.values.dtype)
            for name, array in self.flat.views(buffers[kind]).items():
                found = moment(f"{kind}.{name}")
                if found.shape != array.shape:
                    raise ValueError(f"{kind}.{name} has shape {found.shape}, not {array.shape}")
                array[...] = found
        return buffers

    def restore(self, buffers: Mapping[str, np.ndarray], updates: int) -> None:
        """Load the first rank's `buffers`, which `lay_out` returned, and the count of updates. All ranks call this."""
        for kind, own in self._buffers().items():
            in_host_memory = to_host(own)
            self.partition.scatter(buffers.get(kind), in_host_memory)
            if in_host_memory is not own:
                own[...] = to_device(in_host_memory, device_of(own))
        self._updates[...] = updates

    def _buffers(self) -> dict[str, Array]:
        return {"first_moment": self.first_moments, "second_moment": self.second_moments}
