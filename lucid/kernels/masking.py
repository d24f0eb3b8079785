"""Masks tokens for the masked language model: which, by what, and the labels, for a whole batch at once.

Used by the data room for training batches and by the model for batches made by hand (Devlin et al. 2018, section 3.1).
"""

from dataclasses import dataclass

import numpy as np

from lucid.backend import Array, array_module
from lucid.random import Coordinates, Stream, integers, random_words, uniform


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    Of the chosen tokens, a share `replace_probability` becomes `mask_token_id`, a share `random_probability` a random
    id below `vocab_size`, and the rest stay as they are. No sample has more than `max_predictions` chosen.
    """

    mask_token_id: int
    vocab_size: int
    max_predictions: int
    probability: float = 0.15
    replace_probability: float = 0.8
    random_probability: float = 0.1
    ignore_index: int = -100


def mask_tokens(
    input_ids: Array, candidates: Array, lengths: Array, masking: Masking, coordinates: Coordinates
) -> tuple[Array, Array]:
    """Return the masked ids and the labels, both like `input_ids`, integer [B, T].

    Of the tokens where `candidates`, bool [B, T], is True, each sample has min(max_predictions, max(1,
    round(probability * length))) chosen without replacement, or all of them if they are fewer, or none if probability
    is 0; `lengths`, integer [B], counts all tokens but padding. Labels are the original ids where chosen,
    `ignore_index` elsewhere. The choice is a function of the arguments and of `coordinates` only, row by row.
    """
    xp = array_module(input_ids)
    length = input_ids.shape[1]
    slots = min(masking.max_predictions, length)
    words = random_words(Stream.MASK, coordinates, 2 * slots + length)
    how, which, order = words[:, :slots], words[:, slots : 2 * slots], words[:, 2 * slots :]

    at_least = 1 if masking.probability > 0 else 0
    counts = xp.clip(xp.rint(masking.probability * lengths).astype(np.int64), at_least, slots)
    counts = xp.minimum(counts, candidates.sum(axis=1))
    positions = _in_random_order(candidates, order)[:, :slots]
    row, slot = xp.nonzero(xp.arange(slots) < counts[:, None])
    position = positions[row, slot]

    original = input_ids[row, position]
    share = uniform(how[row, slot])
    random_ids = integers(which[row, slot], masking.vocab_size)
    replaced = xp.where(share < masking.replace_probability, masking.mask_token_id, random_ids)
    kept = share >= masking.replace_probability + masking.random_probability

    masked, labels = input_ids.copy(), xp.full_like(input_ids, masking.ignore_index)
    masked[row, position] = xp.where(kept, original, replaced)
    labels[row, position] = original
    return masked, labels


def _in_random_order(candidates: Array, order: Array) -> Array:
    """Return int64 [B, T]: the positions of each row, the candidates first, in the order of their random words."""
    xp = array_module(candidates)
    # The position in the low bits makes the keys distinct and comes out of the sort with them.
    keys = order.astype(np.uint64) << np.uint64(31) | xp.arange(candidates.shape[1], dtype=np.uint64)
    keys |= (~candidates).astype(np.uint64) << np.uint64(63)
    keys.sort(axis=1)
    return (keys & np.uint64((1 << 31) - 1)).astype(np.int64)
