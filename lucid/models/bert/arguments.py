"""Checks the arguments of the model: shapes, dtypes and ranges, with errors that name the argument.

Checked ids, masks and labels are in host memory, wherever they were before, because token rows are chosen there.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lucid import backend
from lucid.autograd import Tensor
from lucid.backend import Array
from lucid.kernels.masking import IGNORE_INDEX
from lucid.kernels.sequences import Sequences
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.token_rows import TokenRows

# Stands for labels that the caller does not have: none counts.
UNLABELLED: Final = object()


@dataclass(frozen=True)
class Grid:
    """The checked inputs of a batch: B sequences of length T, of which either ids or embeddings are given.

    All are [B, T] and in host memory, except for `inputs_embeds` [B, T, C], which are on the model's device. Without
    `position_ids` the positions of each sequence count from 0.
    """

    input_ids: Array | None
    inputs_embeds: Tensor | None
    attention_mask: Array | None
    token_type_ids: Array
    position_ids: Array | None

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        B, T = self.token_type_ids.shape
        return B, T

    def all_slots(self) -> Sequences:
        """Return all slots as sequences of length T, padding included."""
        return Sequences.padded(self.token_type_ids, self.attention_mask)

    def without_padding(self, labelled: Array | None = None) -> Sequences:
        """Return each sequence up to its last slot that is attended to or is in `labelled` (bool [B, T])."""
        return Sequences.unpadded(self.token_type_ids, self.attention_mask, labelled)

    def token_rows(self, sequences: Sequences) -> TokenRows:
        """Return the slots of `sequences` as token rows: ids in host memory, embeddings on the model's device."""
        return TokenRows.of_grid(sequences, self.input_ids, self.token_type_ids, self.position_ids, self.inputs_embeds)


def check_inputs(
    config: BERTConfig,
    device: str,
    input_ids: Any,
    attention_mask: Any = None,
    token_type_ids: Any = None,
    position_ids: Any = None,
    inputs_embeds: Any = None,
) -> Grid:
    """Return the inputs with defaults filled in, or raise `ValueError`. Embeddings are moved to `device`."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give either input_ids or inputs_embeds, and not both")
    if inputs_embeds is not None:
        inputs_embeds = _embeddings(inputs_embeds, config.hidden_size).to(device)
        B, T = inputs_embeds.shape[:2]
    else:
        input_ids = integers("input_ids", input_ids, (None, None), config.vocab_size, "vocab_size")
        B, T = input_ids.shape
    longest = config.max_position_embeddings
    if longest < T:
        name = "input_ids" if inputs_embeds is None else "inputs_embeds"
        raise ValueError(f"{name} has sequences of length {T}; max_position_embeddings allows {longest}")
    if attention_mask is not None:
        attention_mask = flags("attention_mask", attention_mask, (B, T))
    if token_type_ids is None:
        token_type_ids = np.zeros((B, T), dtype=np.int64)
    else:
        types = config.type_vocab_size
        token_type_ids = integers("token_type_ids", token_type_ids, (B, T), types, "type_vocab_size")
    if position_ids is not None:
        position_ids = _broadcast_rows(position_ids)
        position_ids = integers("position_ids", position_ids, (None, T), longest, "max_position_embeddings")
        if len(position_ids) not in (1, B):
            raise ValueError(f"position_ids has shape {position_ids.shape}; it takes ({B}, {T}), (1, {T}) or ({T},)")
        position_ids = np.broadcast_to(position_ids, (B, T))
    return Grid(input_ids, inputs_embeds, attention_mask, token_type_ids, position_ids)


def check_labels(
    grid: Grid, mlm_labels: Any, nsp_labels: Any, vocab_size: int, ignore_index: int
) -> tuple[Array, Array]:
    """Return the labels of `grid`, MLM [B, T] and NSP [B], or raise `ValueError`. With `UNLABELLED` none counts."""
    if mlm_labels is UNLABELLED:
        mlm_labels = np.full(grid.shape, ignore_index)
    if nsp_labels is UNLABELLED:
        nsp_labels = np.full(grid.shape[0], IGNORE_INDEX)
    return (
        integers("mlm_labels", mlm_labels, grid.shape, vocab_size, "vocab_size", ignored=ignore_index),
        integers("nsp_labels", nsp_labels, grid.shape[:1], 2, ignored=IGNORE_INDEX),
    )


def integers(
    name: str,
    values: Any,
    shape: tuple[int | None, ...],
    bound: int,
    bound_name: str = "",
    ignored: int | None = None,
) -> Array:
    """Return `values` as integers of `shape` (None: any size) in host memory, all in [0, bound) or `ignored`.

    Errors name the setting that `bound` comes from, `bound_name`.
    """
    array = _array(name, values, shape)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {array.dtype}; it takes integers")
    outside = (array < 0) | (array >= bound)
    if ignored is not None:
        outside &= array != ignored
    if outside.any():
        why = f" ({bound_name} is {bound})" if bound_name else ""
        also = "" if ignored is None else f", or {ignored} for positions that do not count"
        wrong = int(array[outside][0])
        raise ValueError(f"{name} has the value {wrong}; it takes 0 to {bound - 1}{why}{also}")
    return array


def _array(name: str, values: Any, shape: tuple[int | None, ...]) -> Array:
    array = backend.to_host(values.data if isinstance(values, Tensor) else values)
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape:
        letters = iter("BT")
        wanted = ", ".join(str(size) if size is not None else next(letters) for size in shape)
        raise ValueError(f"{name} has shape {array.shape}; it takes ({wanted}{',' if len(shape) == 1 else ''})")
    return array


def _broadcast_rows(values: Any) -> Any:
    return values.reshape(1, -1) if getattr(values, "ndim", None) == 1 else values


def flags(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    """Return `values`, which are zeros and ones of `shape`, as a bool array in host memory."""
    array = _array(name, values, shape)
    neither = (array != 0) & (array != 1)
    if neither.any():
        raise ValueError(f"{name} has the value {array[neither][0]}; it takes 0 and 1")
    return array != 0


def check_token_id(name: str, value: int, vocab_size: int) -> None:
    """Raise `ValueError` unless `value` is an id of the vocabulary."""
    if not 0 <= value < vocab_size:
        raise ValueError(f"{name} is {value}; it takes an id from 0 to {vocab_size - 1} (vocab_size - 1)")


def check_probabilities(mlm_probability: float, mask_replace_prob: float, random_replace_prob: float) -> None:
    """Raise `ValueError` unless each is a probability and the last two add up to at most 1."""
    probabilities = {
        "mlm_probability": mlm_probability,
        "mask_replace_prob": mask_replace_prob,
        "random_replace_prob": random_replace_prob,
        "mask_replace_prob + random_replace_prob": mask_replace_prob + random_replace_prob,
    }
    for name, probability in probabilities.items():
        if not 0 <= probability <= 1:
            raise ValueError(f"{name} is {probability}; it takes a number from 0 to 1")


def _embeddings(values: Any, width: int) -> Tensor:
    tensor = values if isinstance(values, Tensor) else Tensor(np.asarray(values))
    if tensor.ndim != 3 or tensor.shape[2] != width or 0 in tensor.shape:
        raise ValueError(f"inputs_embeds has shape {tensor.shape}; it takes (B, T, {width})")
    if tensor.dtype.kind != "f":
        raise ValueError(f"inputs_embeds has dtype {tensor.dtype}; it takes floating-point numbers")
    return tensor
