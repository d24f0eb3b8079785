"""Cross-entropy, and the most probable id, over a wide vocabulary."""

from lucid.backend import Array, array_module


def cross_entropy(
    logits: Array, labels: Array, ignore_index: int, vocabulary: int | None = None
) -> tuple[Array, Array]:
    xp, logits = array_module(logits), logits[:, :vocabulary]
    counted = labels != ignore_index
    most = logits.max(axis=1)
    log_sum = xp.log(xp.exp(logits - most[:, None]).sum(axis=1)) + most
    at_label = logits[xp.arange(len(labels)), xp.where(counted, labels, 0)]
    return (log_sum - at_label) * counted, log_sum


def cross_entropy_gradient(
    gradient: Array,
    logits: Array,
    labels: Array,
    log_sum: Array,
    ignore_index: int,
    vocabulary: int | None = None,
) -> Array:
    xp = array_module(logits)
    counted = labels != ignore_index
    by_logits = xp.zeros_like(logits)
    own = by_logits[:, :vocabulary]
    own[...] = xp.exp(logits[:, :vocabulary] - log_sum[:, None])
    own[xp.arange(len(labels)), xp.where(counted, labels, 0)] -= 1
    own *= (gradient * counted)[:, None]
    return by_logits


def argmax(x: Array, vocabulary: int | None = None) -> Array:
    return x[..., :vocabulary].argmax(axis=-1)
