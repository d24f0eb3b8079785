"""The text of every sample can be traced to its documents, and the samples of every document can be found."""

from dataclasses import replace

import numpy as np
import pytest

from lucid.data import Batch, Corpus, Sampler, SamplerSettings
from lucid.kernels.masking import IGNORE_INDEX

PAIRS = SamplerSettings(sequence_length=64, short_sequence_probability=0.3)
KINDS = {"pairs": PAIRS, "whole words": replace(PAIRS, whole_word_mask=True), "one segment": replace(PAIRS, nsp=False)}
KINDS |= {f"{kind}, packed": replace(settings, packing=True) for kind, settings in KINDS.items()}


def texts(batch: Batch, special: tuple[int, ...]) -> list[tuple[int, list[int], list[int]]]:
    """Return, for each sequence, the row that it is in and the tokens of both segments as they were in the corpus."""
    true = np.where(batch.mlm_labels == IGNORE_INDEX, batch.input_ids, batch.mlm_labels)
    found = []
    for row, ids in enumerate(batch.sequence_ids):
        for number in range(1, int(ids.max()) + 1):
            halves = ((ids == number) & (batch.token_type_ids[row] == half) for half in (0, 1))
            first, second = ([token for token in true[row, half].tolist() if token not in special] for half in halves)
            found.append((row, first, second))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_segments_of_samples_are_their_text(corpus: Corpus, kind: str) -> None:
    sampler = Sampler(corpus, KINDS[kind], seed=4)
    start = sampler.samples_per_epoch - 20  # into the next epoch
    batch = sampler.batch(start, range(40))
    segments, element = sampler.segments(start + np.arange(40))
    special = corpus.special_tokens
    expected = texts(batch, (special.classify, special.separator))
    assert element.tolist() == [row for row, _, _ in expected]
    for number, (_, first, second) in enumerate(expected):
        for text, begin, length in (
            (first, segments.first_start[number], segments.first_length[number]),
            (second, segments.second_start[number], segments.second_length[number]),
        ):
            assert corpus.tokens(np.arange(begin, begin + length)).tolist() == text
    if KINDS[kind].nsp:
        assert segments.labels.tolist() == batch.nsp_labels.tolist()


def documents_of(corpus: Corpus, starts: np.ndarray) -> np.ndarray:
    return corpus.documents.last_up_to(corpus.sentences.last_up_to(starts))


@pytest.mark.parametrize("kind", KINDS)
def test_the_samples_of_a_document_are_those_that_hold_its_text(corpus: Corpus, kind: str) -> None:
    sampler = Sampler(corpus, KINDS[kind], seed=4)
    indices = np.arange(sampler.samples_per_epoch)
    for epoch in (0, 2):
        segments, element = sampler.segments(epoch * sampler.samples_per_epoch + indices)
        first, second = (documents_of(corpus, start) for start in (segments.first_start, segments.second_start))
        for document in (0, 1, 17, corpus.document_count - 1):
            expected = np.unique(element[first == document])
            assert sampler.samples_from(document, epoch).tolist() == expected.tolist()
            random = np.unique(element[(second == document) & (segments.labels == 1)])
            found = np.flatnonzero(sampler.takes_randomly(document, epoch, indices))
            assert found.tolist() == random.tolist()
            some = np.arange(5, len(indices), 3)
            assert sampler.takes_randomly(document, epoch, some).tolist() == np.isin(some, random).tolist()


def test_every_sample_but_those_left_out_is_made_of_one_document(corpus: Corpus) -> None:
    for settings in (PAIRS, replace(PAIRS, packing=True)):
        sampler = Sampler(corpus, settings, seed=1)
        found = [sampler.samples_from(document, 3).tolist() for document in range(corpus.document_count)]
        assert set().union(*found) == set(range(sampler.samples_per_epoch))
        if not settings.packing:
            assert sum(map(len, found)) == sampler.samples_per_epoch
