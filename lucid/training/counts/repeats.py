"""How much of a corpus repeats itself."""

import numpy as np

from lucid.data import Corpus
from lucid.training.counts.kept import KeptCounts
from lucid.training.counts.pieces import pieces

_SEED = 1
# A shorter sentence, such as a heading, says nothing when it comes again.
_SHORTEST = 8
# A change of what is computed takes another number, so that no older result is used.
_VERSION = 1


def repeated_share(corpus: Corpus, counts: KeptCounts) -> float:
    """Return the share of the tokens that are in sentences of eight tokens or more that came before, from 0 to 1.

    Of a corpus with more than 8 million tokens that is the share in `pieces` of it, so it is a lower bound. Two
    sentences are equal if their 64-bit hashes are.
    """
    return counts.get(["repeated", _VERSION, corpus.identity], lambda: _share(corpus))


def _share(corpus: Corpus) -> float:
    # The hash of a sentence is the sum of its tokens' random odd numbers, each mixed with the token's place.
    numbers = np.random.default_rng(_SEED).integers(0, 1 << 63, corpus.vocab_size, np.uint64) * np.uint64(2) + 1
    hashes, lengths, total = [], [], 0
    for start, stop in pieces(corpus):
        first, last = corpus.sentences.first_from(np.array([start, stop])).tolist()
        # A piece has the sentences that begin in it, but for one that goes on after it.
        last = int(corpus.sentences.last_up_to(np.array([stop]))[0]) if stop < corpus.token_count else last
        if last <= first:
            continue
        bounds = corpus.sentences.at(np.arange(first, last + 1))
        length = np.diff(bounds)
        tokens = corpus.tokens(np.arange(bounds[0], bounds[-1]))
        place = np.arange(len(tokens), dtype=np.uint64) - np.repeat((bounds[:-1] - bounds[0]).astype(np.uint64), length)
        mixed = numbers[tokens] * (place * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1))
        hashes.append(np.add.reduceat(mixed ^ (mixed >> np.uint64(31)), bounds[:-1] - bounds[0]))
        lengths.append(length)
        total += len(tokens)
    if not total:
        return 0.0
    length = np.concatenate(lengths)
    long = length >= _SHORTEST
    first_places = np.unique(np.concatenate(hashes)[long], return_index=True)[1]
    return float(length[long].sum() - length[long][first_places].sum()) / total
