"""The names and shapes of a model's parameters, from its configuration alone: no memory is needed to compare them."""

from collections.abc import Iterator

from lucid.models.bert.config import BERTConfig

# What the names of the layers' parameters begin with; the number of the layer follows.
LAYER = "bert.encoder.layer."


def parameter_shapes(config: BERTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each parameter of a `BERTForPreTraining`. The tied decoder has none of its own."""
    C, inner = config.hidden_size, config.intermediate_size
    rows = {
        "word": config.vocab_size,
        "position": config.max_position_embeddings,
        "token_type": config.type_vocab_size,
    }
    for kind, count in rows.items():
        yield f"bert.embeddings.{kind}_embeddings.weight", (count, C)
    yield from _norm("bert.embeddings", C)
    for number in range(config.num_hidden_layers):
        layer = f"{LAYER}{number}"
        for part in ("query", "key", "value"):
            yield from _linear(f"{layer}.attention.self.{part}", C, C)
        yield from _linear(f"{layer}.attention.output.dense", C, C)
        yield from _norm(f"{layer}.attention.output", C)
        yield from _linear(f"{layer}.intermediate.dense", C, inner)
        yield from _linear(f"{layer}.output.dense", inner, C)
        yield from _norm(f"{layer}.output", C)
    yield from _linear("bert.pooler.dense", C, C)
    yield "cls.predictions.bias", (config.vocab_size,)
    yield from _linear("cls.predictions.transform.dense", C, C)
    yield from _norm("cls.predictions.transform", C)
    yield from _linear("cls.seq_relationship", C, 2)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.LayerNorm.weight", (width,)
    yield f"{name}.LayerNorm.bias", (width,)
