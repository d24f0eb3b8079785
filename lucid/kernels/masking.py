"""Masking of tokens for the masked language model, a whole batch at once (Devlin et al., 2018, section 3.1).

`data` masks training batches with it, and the model masks batches that are made by hand.
"""

from dataclasses import dataclass

import numpy as np

from lucid.backend import Array, array_module
from lucid.random import Coordinates, Purpose, integers, random_words, uniform

# The label, as in PyTorch, of unmasked positions and of sequences without a second segment.
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    Each chosen token becomes `mask_token_id` with `replace_probability`, a random id below `vocab_size` with
    `random_probability`, and otherwise stays as it is. At most `max_predictions` tokens of a sample are chosen.
    """

    mask_token_id: int
    vocab_size: int
    max_predictions: int
    probability: float = 0.15
    replace_probability: float = 0.8
    random_probability: float = 0.1
    ignore_index: int = IGNORE_INDEX


def mask_tokens(
    input_ids: Array,
    candidates: Array,
    lengths: Array,
    masking: Masking,
    coordinates: Coordinates,
    continues_word: Array | None = None,
) -> tuple[Array, Array]:
    """Return the masked ids and the labels, both with the shape and dtype of `input_ids`, integer [B, T].

    Among the tokens with `candidates` (bool [B, T]) True, each sample draws min(max_predictions, max(1,
    round(probability * length))) without replacement, all of them if they are fewer, and none if probability is 0.
    `lengths` (integer [B]) counts all tokens but padding. Labels are the original ids of chosen tokens and
    `ignore_index` elsewhere. The choice in each row depends only on the row's arguments and coordinates.

    `continues_word` (bool [B, T]) is True where a token belongs to the same word as the token before it. With it whole
    words are chosen, in random order, as long as they fit into the number, so that slightly fewer tokens may be chosen.
    The replacement is still drawn for each token, as in BERT's whole word masking (`create_pretraining_data.py`).
    """
    xp = array_module(input_ids)
    length = input_ids.shape[1]
    slots = min(masking.max_predictions, length)
    words = random_words(Purpose.MASK, coordinates, 2 * slots + length)
    how, which, order = words[:, :slots], words[:, slots : 2 * slots], words[:, 2 * slots :]

    at_least = 1 if masking.probability > 0 else 0
    counts = xp.clip(xp.rint(masking.probability * lengths).astype(np.int64), at_least, slots)
    counts = xp.minimum(counts, candidates.sum(axis=1))
    if continues_word is None:
        positions = _in_random_order(candidates, order)
        row, slot = xp.nonzero(xp.arange(slots) < counts[:, None])
        position = positions[row, slot]
    else:
        row, position, slot = _whole_words(candidates, continues_word, order, counts)

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
    """Return int64 [B, T]: the positions of each row ordered by their random words, candidates first."""
    xp = array_module(candidates)
    # The position in the low bits makes the keys distinct, and is read from the sorted keys.
    keys = order.astype(np.uint64) << np.uint64(31) | xp.arange(candidates.shape[1], dtype=np.uint64)
    keys |= (~candidates).astype(np.uint64) << np.uint64(63)
    keys.sort(axis=1)
    return (keys & np.uint64((1 << 31) - 1)).astype(np.int64)


def _whole_words(candidates: Array, continues_word: Array, order: Array, counts: Array) -> tuple[Array, Array, Array]:
    """Return int64 [M] each: row, position and number in its row of the chosen tokens, at most `counts` in a row."""
    xp = array_module(candidates)
    rows, length = candidates.shape
    # If the beginning of a word is cut off or not a candidate, the word begins with its next candidate.
    begins = candidates & ~continues_word
    begins[:, 1:] |= candidates[:, 1:] & ~candidates[:, :-1]
    begins[:, 0] = candidates[:, 0]
    start = xp.maximum.accumulate(xp.where(begins, xp.arange(length), 0), axis=1)
    # All tokens of a word get the random number of its first, so that they are adjacent in the random order.
    positions = _in_random_order(candidates, xp.take_along_axis(order, start, axis=1))
    word = xp.cumsum(xp.take_along_axis(begins, positions, axis=1), axis=1) - 1
    in_order = xp.arange(length) < candidates.sum(axis=1)[:, None]
    word_of_all = (word + xp.arange(rows)[:, None] * length)[in_order]
    sizes = xp.bincount(word_of_all, minlength=rows * length).reshape(rows, length)

    # First the leading words that fit, then any later ones that still fit. A word that once did not fit never will.
    taken = xp.cumsum(sizes, axis=1) <= counts[:, None]
    left = counts - (sizes * taken).sum(axis=1)
    taken |= sizes == 0
    waiting = xp.flatnonzero(left)
    while len(waiting):
        fits = ~taken[waiting] & (sizes[waiting] <= left[waiting, None])
        some = fits.any(axis=1)
        waiting, number = waiting[some], fits[some].argmax(axis=1)
        taken[waiting, number] = True
        left[waiting] -= sizes[waiting, number]
    chosen = in_order & xp.take_along_axis(taken, word, axis=1)
    row, slot = xp.nonzero(chosen)
    return row, positions[row, slot], (xp.cumsum(chosen, axis=1) - 1)[row, slot]
