"""Mixes the samples of several corpora in fixed shares. Which corpus gives a sample is a pure function of its number.

The run is divided into blocks. At the end of each, every corpus has given its share of the samples so far, to within
one sample. A keyed permutation orders the samples of a block. So a run continues at any sample at once, and the shares
are exact, not drawn.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

import numpy as np

from lucid.backend import Array
from lucid.data.batch import Batch
from lucid.data.permutation import Permutation
from lucid.data.sampler import Sampler
from lucid.errors import DataError
from lucid.random import Coordinates, Purpose, random_words

# The fewest samples of a block, and the most. In a block, the share of each corpus is one sample or more.
_LEAST, _MOST = 1 << 10, 1 << 16


def shares_of(weights: Sequence[float]) -> list[Fraction]:
    """Return the share of each of these positive weights in their sum, exactly.

    Weights count as they are written: 0.3 and 0.1 give the shares of 3 and 1.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


def seeds_of(seed: int, count: int) -> list[int]:
    """Return the seeds of `count` corpora of a run with `seed`: the first has the run's own, the others have new ones.

    So samples of two corpora with the same epoch and index do not share their masks.
    """
    return [seed, *(_new_seed(seed, corpus) for corpus in range(1, count))]


def _new_seed(seed: int, number: int) -> int:
    high, low = random_words(Purpose.MIXTURE, Coordinates.of(seed, 0, np.array([number])), 2)[0].tolist()
    return high << 32 | low


class Mixture:
    """Makes samples of several corpora, as a `Sampler` does of one.

    `samplers` have the seeds of `seeds_of`; each is used in its own order, from its first sample on, with epochs of its
    own. `weights` are positive, and need not add up to 1. Up to any sample of the run, a corpus has its share but for
    less than a block; at the end of each block, but for less than one sample. With one corpus the batches are those of
    its sampler. Raises `DataError` if a share is below 1 in 65,536.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float], seed: int) -> None:
        self.samplers, self.shares = tuple(samplers), shares_of(weights)
        least = min(self.shares)
        if least < Fraction(1, _MOST):
            folder = self.samplers[self.shares.index(least)].corpus.folder
            raise DataError(
                f"the weight of {folder} gives it less than 1 sample in {_MOST:,}: raise it, or leave it out"
            )
        self._block = max(_LEAST, 1 << (math.ceil(1 / least) - 1).bit_length())
        # The share of each corpus and all before it.
        self._up_to = list(accumulate(self.shares))
        self._seed = _new_seed(seed, 0)
        self._arranged_block = lru_cache(maxsize=8)(self._arrange_block)

    def batch(self, consumed: int, samples: range | Array, mlm_probability: float | None = None) -> Batch:
        """Return these `samples` (rising, int64) of the global batch that begins after `consumed` samples of the run.

        See `Sampler.batch` for `mlm_probability`. Raises `DataError` if a corpus has changed since it was opened.
        """
        indices = np.asarray(samples, np.int64)
        corpora, numbers = self.choose(consumed + indices)
        chosen = [(corpus, corpora == corpus) for corpus in np.unique(corpora).tolist()]
        parts = [
            self.samplers[corpus].batch_of(numbers[here], indices[here], mlm_probability) for corpus, here in chosen
        ]
        return parts[0] if len(parts) == 1 else Batch.joined(parts).in_order()

    def epochs(self, consumed: int) -> float:
        """Return how often a run that has consumed so many samples has passed over its corpus.

        Of several, it is the one that the run has passed over most often.
        """
        return max(
            consumed * float(share) / sampler.samples_per_epoch
            for sampler, share in zip(self.samplers, self.shares, strict=True)
        )

    def expected_lengths(self, numbers: Array) -> Array:
        """Return about how many tokens each of these samples of the run has (rising, int64 [B]), without packing."""
        corpora, of_corpus = self.choose(numbers)
        lengths = np.empty(len(numbers), np.int64)
        for corpus in np.unique(corpora).tolist():
            here = corpora == corpus
            lengths[here] = self.samplers[corpus].expected_lengths(of_corpus[here])
        return lengths

    def choose(self, numbers: Array) -> tuple[Array, Array]:
        """Return where these samples of the run (int64 [B]) come from, as two arrays, int64 [B].

        The first has the corpus of each, an index in `samplers`. The second has its number among all samples of that
        corpus in the run: `samplers[corpus].locate` finds the epoch and the index in the epoch.
        """
        blocks, positions = np.divmod(numbers, self._block)
        found = np.empty((2, len(numbers)), np.int64)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            found[:, here] = self._arranged_block(block)[:, positions[here]]
        return found[0], found[1]

    def numbers_in_corpus(self, corpus: int, numbers: range) -> range:
        """Return which samples of a corpus are among the samples of the run with these `numbers`."""
        return range(self._given_before(corpus, numbers.start), self._given_before(corpus, numbers.stop))

    def _given_before(self, corpus: int, number: int) -> int:
        block, position = divmod(number, self._block)
        in_block = np.count_nonzero(self._arranged_block(block)[0, :position] == corpus)
        return int(self._used_by(block)[corpus]) + int(in_block)

    def numbers_in_run(self, corpus: int, numbers: Array) -> Array:
        """Return the numbers in the run (int64 [B]) of samples with these `numbers` among those of a corpus.

        This is the inverse of `choose`.
        """
        if len(self.samplers) == 1:
            return numbers
        share = self._block * float(self.shares[corpus])
        blocks = np.floor(numbers / share).astype(np.int64)
        while True:
            # Rounding may move a sample to the next block or to the one before.
            known, of_number = np.unique(blocks, return_inverse=True)
            first, end = (np.array([self._used_by(block + more)[corpus] for block in known]) for more in (0, 1))
            moved = (numbers >= end[of_number]).astype(np.int64) - (numbers < first[of_number])
            if not moved.any():
                break
            blocks += moved
        found = np.empty(len(numbers), np.int64)
        for number, block in enumerate(known.tolist()):
            here = of_number == number
            own = np.flatnonzero(self._arranged_block(block)[0] == corpus)
            found[here] = block * self._block + own[numbers[here] - first[number]]
        return found

    def _arrange_block(self, block: int) -> Array:
        """Return int64 [2, block]: corpus and number, as `choose` does, of each sample of a block."""
        before, after = self._used_by(block), self._used_by(block + 1)
        corpora = np.repeat(np.arange(len(before)), after - before)
        numbers = np.concatenate([np.arange(first, end) for first, end in zip(before, after, strict=True)])
        # The samples of a corpus keep their order, so that an epoch ends before the next one begins.
        corpora = corpora[Permutation(self._block, self._seed, block).at(np.arange(self._block))]
        arranged = np.empty((2, self._block), np.int64)
        arranged[0] = corpora
        arranged[1, np.argsort(corpora, kind="stable")] = numbers
        return arranged

    def _used_by(self, blocks: int) -> Array:
        """Return int64 [corpora]: how many samples each corpus has given when this many blocks have passed.

        Rounding the sums of shares down keeps the total, and no corpus goes back: it has a share of at least one sample
        in a block.
        """
        up_to = [math.floor(blocks * self._block * share) for share in self._up_to]
        return np.diff(np.array(up_to, np.int64), prepend=0)
