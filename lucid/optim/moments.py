"""What AdamW and LAMB have in common: two running moments a parameter, laid out like the flat buffers."""

from collections.abc import Mapping

import numpy as np

from lucid.backend import array_module, device_of, to_device, to_host
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
        xp = array_module(flat.values)
        self.first_moments = xp.zeros_like(flat.values)
        self.second_moments = xp.zeros_like(flat.values)

    def step(self, learning_rate: float, gradient_scale: float = 1.0) -> None:
        """Update the parameters in place from their gradients times `gradient_scale`."""
        self.updates += 1
        corrections = (1.0, 1.0)
        if self.bias_correction:
            corrections = (1 - self.betas[0] ** self.updates, 1 - self.betas[1] ** self.updates)
        self.update(learning_rate, gradient_scale, corrections)

    def update(self, learning_rate: float, gradient_scale: float, corrections: tuple[float, float]) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the moments by parameter: `first_moment.<name>` and `second_moment.<name>`."""
        return {
            f"{kind}.{name}": to_host(array)
            for kind, buffer in self._buffers().items()
            for name, array in self.flat.views(buffer).items()
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray], updates: int) -> None:
        """Copy moments of the same names and shapes, and set the count of updates behind them.

        Raises `KeyError` if one is missing, and `ValueError` if one has another shape.
        """
        for kind, buffer in self._buffers().items():
            for name, array in self.flat.views(buffer).items():
                moment = state[f"{kind}.{name}"]
                if moment.shape != array.shape:
                    raise ValueError(f"{kind}.{name} has shape {moment.shape}, not {array.shape}")
                array[...] = to_device(moment, device_of(array))
        self.updates = updates

    def _buffers(self) -> dict[str, np.ndarray]:
        return {"first_moment": self.first_moments, "second_moment": self.second_moments}
