"""The held-out MLM losses that counts of tokens attain without a model. A loss curve is compared with them.

A model that does no better than token frequencies uses no context; one that does no better than bigrams uses no more
than the two neighbours of each masked token.
"""

from typing import Any

import numpy as np

from lucid.backend import Array
from lucid.data import Corpus
from lucid.kernels.masking import IGNORE_INDEX
from lucid.training.counts.kept import KeptCounts
from lucid.training.counts.pieces import pieces
from lucid.training.held_out import HeldOut

# Samples of a batch, and masked tokens whose predictions are normalised at once: a few MB each.
_SAMPLES, _TOKENS = 1024, 64
# A change of what is computed takes another number, so that no older result is used.
_VERSION = 1


def frequency_losses(corpus: Corpus) -> Array:
    """Return float64 [V]: the loss (nats) of each token if predicted by its frequency in `corpus`, plus one."""
    counts = corpus.token_frequencies() + 1
    return np.log(counts.sum()) - np.log(counts)


def bigram_loss(counts: KeptCounts, held_out: HeldOut, samples: int) -> float:
    """Return the sum of the losses (nats) of `Bigrams` over the masked tokens of the first epoch's first samples."""
    depends_on = ["bigrams", _VERSION, held_out.training.identity, held_out.making, samples]
    return counts.get(depends_on, lambda: _bigram_loss(held_out, samples))


def _bigram_loss(held_out: HeldOut, samples: int) -> float:
    bigrams = Bigrams.of(held_out.training, np.exp(-held_out.token_losses))
    total = 0.0
    for start in range(0, samples, _SAMPLES):
        batch = held_out.sampler.batch(0, range(start, min(start + _SAMPLES, samples)))
        rows, columns = np.nonzero(batch.mlm_labels != IGNORE_INDEX)
        # [CLS] and the last [SEP] are never masked, so both neighbours are in the row.
        left, right = (batch.input_ids[rows, columns + step] for step in (-1, 1))
        total += float(bigrams.losses(left, right, batch.mlm_labels[rows, columns]).sum())
    return total


class Bigrams:
    """Predicts a token from its two neighbours, by counts of neighbouring tokens.

    With p(w) the token frequency and c(l w) the number of times that w follows l in a document,

        P(w | l) = max(c(l w) - D, 0) / c(l) + D n(l) / c(l) p(w)

    where n(l) is the number of different tokens that follow l: absolute discounting, which backs off to p, with
    D = n1 / (n1 + 2 n2) from the numbers of pairs that were counted once and twice (Ney, Essen & Kneser 1994). P(w | r)
    is the same for the token r that follows w. Given w, the neighbours count as independent of each other:

        P(w | l, r) = P(w | l) P(w | r) / p(w) / Z(l, r)

    where Z makes the sum over w one. A neighbour that tells nothing, such as [MASK] or [CLS], leaves the prediction to
    the other one; two of them leave p.
    """

    def __init__(self, first: Array, second: Array, counts: Array, frequencies: Array) -> None:
        """Take the different pairs of tokens, each `first` and `second` (int64 [N]), with their counts (int64 [N]).

        `frequencies`, float64 [V], are above zero and add up to 1.
        """
        once, twice = (int(np.count_nonzero(counts == number)) for number in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        self._frequencies = frequencies
        self._after = _Conditional(first, second, counts, discount, frequencies)
        self._before = _Conditional(second, first, counts, discount, frequencies)

    @classmethod
    def of(cls, corpus: Corpus, frequencies: Array) -> "Bigrams":
        """Count the bigrams of a corpus; if it has more than 8 million tokens, in 64 pieces with as many in all.

        That takes 0.2 seconds for 1 million tokens, and 0.8 for 100 million, and about 200 MB of memory.
        """
        size = corpus.vocab_size
        keys, counts = np.unique(_pairs(corpus), return_counts=True)
        return cls(*np.divmod(keys, size), counts, frequencies)

    def losses(self, left: Array, right: Array, tokens: Array) -> Array:
        """Return float64 [M]: the loss (nats) of each of these tokens between these neighbours, integers [M] each."""
        after, before, frequency = self._after, self._before, self._frequencies[tokens]
        sums = 1 - (1 - after.rest[left]) * (1 - before.rest[right])
        order = np.argsort(left, kind="stable")
        for start in range(0, len(tokens), _TOKENS):
            here = order[start : start + _TOKENS]
            sums[here] += _products(after.scaled, left[here], before.discounted, right[here])
        likelihood = after.probability(left, tokens, frequency) * before.probability(right, tokens, frequency)
        return np.log(sums) + np.log(frequency) - np.log(likelihood)


def _products(first: Any, rows: Array, second: Any, other_rows: Array) -> Array:
    """Return the products of these rows of a sparse matrix with these of another. Few different `rows` are best."""
    different, number = np.unique(rows, return_inverse=True)
    dense, sparse = first[different].toarray(), second[other_rows]
    row = np.repeat(np.arange(len(rows)), np.diff(sparse.indptr))
    return np.bincount(row, sparse.data * dense[number[row], sparse.indices], len(rows))


class _Conditional:
    """P(token | neighbour) on one side: discounted shares, sparse [V, V], and the `rest` of each neighbour, [V].

    `scaled` are the discounted shares divided by the frequency of the token.
    """

    def __init__(self, neighbours: Array, tokens: Array, counts: Array, discount: float, frequencies: Array) -> None:
        from scipy.sparse import csr_array  # half a second, which a run that knows the result saves

        size = len(frequencies)
        totals = np.bincount(neighbours, counts, size)
        shares = (counts - discount) / totals[neighbours]
        self.rest = 1 - np.bincount(neighbours, shares, size)
        self.discounted = csr_array((shares, (neighbours, tokens)), (size, size))
        self.scaled = csr_array((shares / frequencies[tokens], (neighbours, tokens)), (size, size))

    def probability(self, neighbours: Array, tokens: Array, frequency: Array) -> Any:
        return self.discounted[neighbours, tokens] + self.rest[neighbours] * frequency


def _pairs(corpus: Corpus) -> Array:
    """Return a number for each pair of neighbouring tokens that is counted: V times the first, plus the second."""
    parts = []
    for start, stop in pieces(corpus):
        tokens = corpus.tokens(np.arange(start, stop)).astype(np.int64)
        first, last = corpus.document_of(np.array([start, stop - 1])).tolist()
        ends = corpus.sentences.at(corpus.documents.at(np.arange(first + 1, last + 1))) - start
        is_within = np.ones(stop - start - 1, bool)
        is_within[ends - 1] = False  # the pair of a document's last token and the next one's first
        parts.append((tokens[:-1] * corpus.vocab_size + tokens[1:])[is_within])
    return np.concatenate(parts)
