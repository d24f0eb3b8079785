"""Packed rows hold the same sequences as without packing, and little padding."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid.data import Batch, Corpus, Sampler, SamplerSettings
from lucid.data.packing import Packing, best_fit

SETTINGS = SamplerSettings(sequence_length=128, short_sequence_probability=0.3)
KINDS = {"pairs": SETTINGS, "whole words": replace(SETTINGS, whole_word_mask=True), "one segment": SETTINGS}
KINDS["one segment"] = replace(SETTINGS, nsp=False)


def sequences(batch: Batch) -> list[tuple[object, ...]]:
    """Return ids, token types, labels and NSP label of each sequence."""
    columns = batch.input_ids, batch.token_type_ids, batch.mlm_labels
    found = [
        tuple(tuple(values[row][ids == number].tolist()) for values in columns)
        for row, ids in enumerate(batch.sequence_ids)
        for number in range(1, ids.max() + 1)
    ]
    return [(*parts, label) for parts, label in zip(found, batch.nsp_labels.tolist(), strict=True)]


def epoch_of(sampler: Sampler, epoch: int) -> Batch:
    return sampler.batch(epoch * sampler.samples_per_epoch, range(sampler.samples_per_epoch))


@pytest.mark.parametrize("kind", KINDS)
def test_packing_does_not_change_the_sequences_of_an_epoch(corpus: Corpus, kind: str) -> None:
    packed = Sampler(corpus, replace(KINDS[kind], packing=True), seed=4)
    apart = Sampler(corpus, KINDS[kind], seed=4)
    for epoch in (0, 3):
        before, after = Counter(sequences(epoch_of(apart, epoch))), Counter(sequences(epoch_of(packed, epoch)))
        assert not after - before
        assert (before - after).total() <= 0.02 * before.total()


def test_packed_rows_are_fewer_and_nearly_full(corpus: Corpus) -> None:
    packed, apart = Sampler(corpus, replace(SETTINGS, packing=True), 4), Sampler(corpus, SETTINGS, 4)
    assert epoch_of(apart, 1).attention_mask.mean() < 0.8
    assert epoch_of(packed, 1).attention_mask.mean() > 0.93
    assert packed.samples_per_epoch < 0.8 * apart.samples_per_epoch


def test_sequences_are_adjacent_and_numbered_and_padding_follows(corpus: Corpus) -> None:
    batch = Sampler(corpus, replace(SETTINGS, packing=True), 4).batch(0, range(40))
    special = corpus.special_tokens
    for row, ids in enumerate(batch.sequence_ids):
        used = int((ids > 0).sum())
        assert (np.diff(ids[:used], prepend=0) >= 0).all()
        assert set(ids[:used].tolist()) == set(range(1, ids.max() + 1))
        assert ((batch.input_ids[row] == special.pad) == (ids == 0)).all()
        first = np.flatnonzero(np.diff(ids[:used], prepend=0))
        assert (batch.input_ids[row, first] == special.classify).all()
        assert (batch.input_ids[row, [*(first[1:] - 1), used - 1]] == special.separator).all()
    counts = [int(ids.max()) for ids in batch.sequence_ids]
    assert len(batch.nsp_labels) == sum(counts)
    assert batch.sequence_lengths.tolist() == [
        int((ids == number).sum()) for ids in batch.sequence_ids for number in range(1, ids.max() + 1)
    ]
    assert batch.slice(5, 9).nsp_labels.tolist() == batch.nsp_labels[sum(counts[:5]) : sum(counts[:9])].tolist()


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.data())
def test_best_fit_opens_the_requested_rows_and_overfills_none(lengths: list[int], data: st.DataObject) -> None:
    at_least = data.draw(st.integers(0, len(lengths)))
    row, openers = best_fit(np.array(lengths), 20, at_least)
    filled = np.bincount(row, weights=lengths)
    assert len(filled) == len(openers) >= at_least
    assert filled.min() > 0
    assert filled.max() <= 20
    assert row[openers].tolist() == list(range(len(openers)))
    # Half the room and more on average: else two rows would fit into one.
    if len(filled) > max(1, at_least):
        assert filled.sum() > 10 * len(filled) - 10


def test_an_epoch_of_many_blocks_has_each_sequence_at_most_once() -> None:
    def lengths(epoch: int, indices: np.ndarray) -> np.ndarray:
        return 5 + (indices * 7919 + epoch * 104729) % 124

    packing = Packing(lengths, 5000, 128)
    indices, row = packing.sequences_in(2, np.arange(packing.rows_per_epoch))
    assert len(set(indices.tolist())) == len(indices) > 4950
    assert sorted(set(row.tolist())) == list(range(packing.rows_per_epoch))
    filled = np.bincount(row, weights=lengths(2, indices))
    assert filled.max() <= 128
    some = np.array([3, 700, 701, packing.rows_per_epoch - 1])
    for index, wanted in enumerate(some.tolist()):
        found, of = packing.sequences_in(2, some)
        assert found[of == index].tolist() == indices[row == wanted].tolist()
