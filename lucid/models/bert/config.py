"""`BERTConfig`: the shape of a BERT, in the field names of Hugging Face's `config.json`."""

import sys
from dataclasses import dataclass, fields
from typing import Any, ClassVar, cast, get_args

from lucid.kernels import Activation

# Hugging Face has two names for the tanh approximation.
ACTIVATION_SYNONYMS = {"gelu_pytorch_tanh": "gelu_new"}
_LARGEST_SIZE = 2**31
# A layer takes its time to make, whatever its size: more layers than this are a mistake.
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class BERTConfig:
    """Sizes, dropout and initialisation of a BERT (Devlin et al., 2018). The defaults describe BERT-base, uncased.

    Raises a `ValueError` that names the field, its value and the values it takes.
    """

    # Makes pydantic refuse misspelt fields in run configurations.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_act", ACTIVATION_SYNONYMS.get(self.hidden_act, self.hidden_act))
        if self.hidden_act not in get_args(Activation):
            raise ValueError(f"hidden_act is {self.hidden_act!r}; it takes one of {', '.join(get_args(Activation))}")
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "pad_token_id" else 1
            if field.type is int and not (type(value) is int and least <= value < _LARGEST_SIZE):
                raise ValueError(f"{field.name} is {value!r}; it takes a whole number from {least} up, below 2**31")
            if field.type is float and not (
                isinstance(value, int | float) and type(value) is not bool and 0 <= value <= sys.float_info.max
            ):
                raise ValueError(f"{field.name} is {value!r}; it takes a number from 0 up")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes a number from 0 up to, not including, 1")
        if self.num_hidden_layers > _MOST_LAYERS:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers}; lucid makes at most {_MOST_LAYERS:,}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; num_attention_heads ({self.num_attention_heads}) must divide it"
            )
        if self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id is {self.pad_token_id}; it must be below vocab_size ({self.vocab_size})")

    @property
    def activation(self) -> Activation:
        """`hidden_act`, in the type that the kernels take."""
        return cast(Activation, self.hidden_act)
