"""BERT for pretraining in plain `jax.numpy`, for the comparison alone. Devlin et al., 2018.

Parameters are a dictionary under Hugging Face's names. B batch, T length, C width, H heads, M masked positions.
"""

import jax
import jax.numpy as jnp

Parameters = dict[str, jax.Array]


class Network:
    """One pass in training: the parameters, and where dropout draws from."""

    def __init__(self, parameters: Parameters, key: jax.Array, heads: int, dropout: float) -> None:
        self.parameters, self.key, self.heads, self.dropout_rate = parameters, key, heads, dropout

    def linear(self, name: str, x: jax.Array) -> jax.Array:
        return x @ self.parameters[f"{name}.weight"].T + self.parameters[f"{name}.bias"]

    def layer_norm(self, name: str, x: jax.Array) -> jax.Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        normal = centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return normal * self.parameters[f"{name}.weight"] + self.parameters[f"{name}.bias"]

    def dropout(self, x: jax.Array) -> jax.Array:
        if self.dropout_rate == 0.0:
            return x
        self.key, key = jax.random.split(self.key)
        keep = jax.random.bernoulli(key, 1 - self.dropout_rate, x.shape)
        return jnp.where(keep, x / (1 - self.dropout_rate), 0.0)

    def embed(self, input_ids: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        tables = {kind: self.parameters[f"bert.embeddings.{kind}_embeddings.weight"] for kind in
                  ("word", "token_type", "position")}  # fmt: skip
        x = tables["word"][input_ids] + tables["token_type"][token_type_ids]
        x = x + tables["position"][: input_ids.shape[1]]
        return self.dropout(self.layer_norm("bert.embeddings.LayerNorm", x))

    def attention(self, name: str, x: jax.Array) -> jax.Array:
        B, T, C = x.shape
        query, key, value = (
            self.linear(f"{name}.{part}", x).reshape(B, T, self.heads, -1) for part in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhc,bkhc->bhqk", query, key) / (C / self.heads) ** 0.5
        probabilities = self.dropout(jax.nn.softmax(scores, axis=-1))
        return jnp.einsum("bhqk,bkhc->bqhc", probabilities, value).reshape(B, T, C)

    def layer(self, name: str, x: jax.Array) -> jax.Array:
        attended = self.linear(f"{name}.attention.output.dense", self.attention(f"{name}.attention.self", x))
        x = self.layer_norm(f"{name}.attention.output.LayerNorm", x + self.dropout(attended))
        wide = jax.nn.gelu(self.linear(f"{name}.intermediate.dense", x), approximate=False)
        return self.layer_norm(f"{name}.output.LayerNorm", x + self.dropout(self.linear(f"{name}.output.dense", wide)))

    def vocabulary_scores(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(self.linear("cls.predictions.transform.dense", x), approximate=False)
        x = self.layer_norm("cls.predictions.transform.LayerNorm", x)
        tied = self.parameters["bert.embeddings.word_embeddings.weight"]
        return x @ tied.T + self.parameters["cls.predictions.bias"]


def mean_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    log_probabilities = jax.nn.log_softmax(scores, axis=-1)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1).mean()


def pretraining_loss(
    parameters: Parameters, batch: dict[str, jax.Array], key: jax.Array, heads: int, dropout: float
) -> jax.Array:
    """Return the mean MLM loss at `positions` plus the mean NSP loss of the batch that `Settings.batch` describes."""
    network = Network(parameters, key, heads, dropout)
    x = network.embed(batch["input_ids"], batch["token_type_ids"])
    layers = sum(name.endswith("intermediate.dense.bias") for name in parameters)
    for number in range(layers):
        x = network.layer(f"bert.encoder.layer.{number}", x)
    pooled = jnp.tanh(network.linear("bert.pooler.dense", x[:, 0]))
    masked = x.reshape(-1, x.shape[-1])[batch["positions"]]
    mlm = mean_cross_entropy(network.vocabulary_scores(masked), batch["mlm_labels"].reshape(-1)[batch["positions"]])
    return mlm + mean_cross_entropy(network.linear("cls.seq_relationship", pooled), batch["nsp_labels"])
