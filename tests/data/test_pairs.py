"""Nothing in a pair tells its label but the text: random segments start, end and fill a sample as true ones do."""

import numpy as np
import pytest
from test_spans import corpus_with

from lucid.data import Corpus
from lucid.data.pairs import WORDS, PairChooser, SegmentPairs
from lucid.data.spans import find_spans
from lucid.random import Coordinates, Purpose, random_words

SPECIAL_TOKENS = 3

# Sentence lengths, median and spread of their logarithm, and the numbers of sentences of documents.
TEXTS = {
    "prose": (20, 0.6, (40, 120)),
    "long sentences": (49, 0.6, (30, 60)),
    "list items": (6, 0.8, (80, 200)),
    "all lengths": (20, 1.2, (40, 80)),
    "short documents": (20, 0.6, (2, 12)),
    # As measured on Debian's translated documentation.
    "Chinese": (19, 0.7, (6, 54)),
    "Thai": (8, 0.7, (10, 140)),
}


@pytest.fixture(scope="module", params=list(TEXTS))
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus of about 50,000 tokens."""
    median, spread, (fewest, most) = TEXTS[request.param]
    rng = np.random.default_rng(7)
    documents: list[list[int]] = []
    while sum(map(sum, documents)) < 50_000:
        lengths = rng.lognormal(np.log(median), spread, rng.integers(fewest, most))
        documents.append(np.clip(np.rint(lengths), 1, 500).astype(int).tolist())
    return corpus_with(tmp_path_factory.mktemp("text"), documents)


def choices(corpus: Corpus, longest: int, short: float) -> SegmentPairs:
    """Return at least 60,000 pairs: every span of the corpus equally often."""
    spans = find_spans(corpus, longest)
    count = len(spans) - 1
    rounds = -(-60_000 // count)
    words = random_words(Purpose.PAIR, Coordinates.of(1, 0, np.arange(rounds * count)), WORDS)
    return PairChooser(corpus, spans, longest, short).choose(np.tile(np.arange(count), rounds), words)


@pytest.mark.parametrize(("sequence_length", "short"), [(32, 0.1), (64, 0.1), (128, 0.1), (64, 0.5)])
def test_neither_boundaries_nor_lengths_tell_the_label(text: Corpus, sequence_length: int, short: float) -> None:
    longest = sequence_length - SPECIAL_TOKENS
    pairs = choices(text, longest, short)
    boundary = np.zeros(text.token_count + 1, bool)
    boundary[text.sentences.at(np.arange(text.sentence_count + 1))] = True
    first, second = pairs.first_length, pairs.second_length
    seen = {
        "A starts with a sentence": boundary[pairs.first_start],
        "A ends with a sentence": boundary[pairs.first_start + first],
        "B starts with a sentence": boundary[pairs.second_start],
        "B ends with a sentence": boundary[pairs.second_start + second],
        "the sample is full": first + second == longest,
    }
    random_pair = pairs.labels == 1
    for name, holds in seen.items():
        true, random = holds[~random_pair].mean(), holds[random_pair].mean()
        assert abs(random - true) < 0.05, f"{name}: {true:.3f} of true pairs, {random:.3f} of random ones"
    for name, length in {"A": first, "B": second, "the pair": first + second}.items():
        true, random = length[~random_pair], length[random_pair]
        assert abs(random.mean() - true.mean()) < 0.025 * longest, name
        assert abs(random.std() - true.std()) < 0.025 * longest, name
    # All of it together: how often the best guess from it is right.
    kinds = np.ravel_multi_index([values.astype(int) for values in seen.values()], (2,) * len(seen))
    by_label = [np.bincount(kinds[pairs.labels == label], minlength=32) for label in (0, 1)]
    assert np.maximum(*by_label).sum() / len(kinds) < 0.55
