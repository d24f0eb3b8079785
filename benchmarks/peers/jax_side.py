"""JAX's side: one jitted step with donated buffers, on XLA's own threads. Started by `run.py`."""

import json
from functools import partial
from pathlib import Path

from side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Settings, begin, serve

settings = begin(0)  # before JAX counts the cores

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax_bert import Parameters, pretraining_loss  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

State = tuple[Parameters, Parameters, Parameters]


def adamw(
    number: jax.Array, scale: jax.Array, value: jax.Array, gradient: jax.Array, first: jax.Array, second: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return value and moments after update `number`, counted from 1."""
    gradient = gradient * scale
    first = BETAS[0] * first + (1 - BETAS[0]) * gradient
    second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    update = first / (1 - BETAS[0] ** number) / (jnp.sqrt(second / (1 - BETAS[1] ** number)) + EPSILON)
    decay = WEIGHT_DECAY if value.ndim >= 2 else 0.0
    return value - LEARNING_RATE * (update + decay * value), first, second


@partial(jax.jit, static_argnames=("heads", "dropout"), donate_argnames="state")
def train_step(
    state: State, number: jax.Array, batch: dict[str, jax.Array], heads: int, dropout: float
) -> tuple[State, jax.Array]:
    values, firsts, seconds = state
    loss, gradients = jax.value_and_grad(pretraining_loss)(values, batch, jax.random.key(number), heads, dropout)
    norm = jnp.sqrt(sum(jnp.vdot(gradient, gradient) for gradient in gradients.values()))
    update = partial(adamw, number.astype(jnp.float32), jnp.minimum(1.0, MAX_NORM / (norm + 1e-6)))
    updated = {name: update(values[name], gradients[name], firsts[name], seconds[name]) for name in values}
    return tuple({name: parts[part] for name, parts in updated.items()} for part in range(3)), loss


class Training:
    def __init__(self, settings: Settings) -> None:
        self.heads = json.loads(Path(settings.folder, "config.json").read_text())["num_attention_heads"]
        values = {name: jnp.asarray(array) for name, array in load_file(f"{settings.folder}/model.safetensors").items()}
        self.state: State = (values, jax.tree.map(jnp.zeros_like, values), jax.tree.map(jnp.zeros_like, values))
        self.batch = {name: jnp.asarray(array, jnp.int32) for name, array in settings.batch(0).items()}
        self.updates = 0

    def step(self, dropout: bool) -> float:
        self.updates += 1
        self.state, loss = train_step(
            self.state, jnp.int32(self.updates), self.batch, self.heads, 0.1 if dropout else 0.0
        )
        jax.block_until_ready(self.state)
        return float(loss)


if __name__ == "__main__":
    serve(settings, 0, Training(settings).step)
