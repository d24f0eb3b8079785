"""Samples are a pure function of the seed and of their number, and have the statistics of BERT."""

import random
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from lucid.backend import Array
from lucid.data import Batch, Corpus, Sampler, SamplerSettings
from lucid.data.pairs import WORDS, PairChooser
from lucid.data.spans import find_spans
from lucid.data.tokenizer import continuing_tokens, load_tokenizer
from lucid.errors import DataError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.preparation import prepare
from lucid.random import Coordinates, Purpose, random_words

SETTINGS = SamplerSettings(sequence_length=64)
LONGEST = 61


@pytest.fixture(scope="module")
def sampler(corpus: Corpus) -> Sampler:
    return Sampler(corpus, SETTINGS, seed=11)


def hundred_thousand(corpus: Corpus, settings: SamplerSettings) -> Batch:
    """Return 100,000 samples, over many epochs."""
    sampler = Sampler(corpus, settings, seed=11)
    return Batch.joined([sampler.batch(0, range(start, start + 10_000)) for start in range(0, 100_000, 10_000)])


@pytest.fixture(scope="module")
def many_by_tokens(corpus: Corpus) -> Batch:
    return hundred_thousand(corpus, SETTINGS)


@pytest.fixture(scope="module")
def many_by_words(corpus: Corpus) -> Batch:
    return hundred_thousand(corpus, replace(SETTINGS, whole_word_mask=True))


@pytest.fixture(scope="module")
def many_packed(corpus: Corpus) -> Batch:
    """100,000 rows, and of these each sequence in a row of its own."""
    batch = hundred_thousand(corpus, replace(SETTINGS, packing=True))
    used, lengths = np.flatnonzero(batch.sequence_ids), batch.sequence_lengths
    column = np.arange(len(used)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    target = np.repeat(np.arange(len(lengths)), lengths) * 64 + column

    def apart(values: Array, empty: int) -> Array:
        grid = np.full((len(lengths), 64), empty, np.int32)
        grid.reshape(-1)[target] = values.reshape(-1)[used]
        return grid

    return Batch(
        input_ids=apart(batch.input_ids, corpus.special_tokens.pad),
        sequence_ids=apart(np.ones_like(batch.sequence_ids), 0),
        token_type_ids=apart(batch.token_type_ids, 0),
        mlm_labels=apart(batch.mlm_labels, IGNORE_INDEX),
        nsp_labels=batch.nsp_labels,
        samples=np.arange(len(lengths)),
    )


@pytest.fixture(params=["many_by_tokens", "many_by_words", "many_packed"])
def many(request: pytest.FixtureRequest) -> Batch:
    return request.getfixturevalue(request.param)


def assert_fraction(found: Array, expected: float) -> None:
    """Assert that the fraction of True is `expected` within five standard errors: 1 in 1.7 million is not."""
    assert abs(found.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / found.size)


def unmasked(batch: Batch) -> Array:
    return np.where(batch.mlm_labels == IGNORE_INDEX, batch.input_ids, batch.mlm_labels)


def assert_equal(batch: Batch, other: Batch, but_for: str = "") -> None:
    for field in fields(Batch):
        if field.name != but_for:
            assert np.array_equal(getattr(batch, field.name), getattr(other, field.name)), field.name


def documents_of(corpus: Corpus, tokens: Array) -> Array:
    return corpus.documents.last_up_to(corpus.sentences.last_up_to(tokens))


@pytest.mark.parametrize("nsp", [True, False])
def test_a_batch_is_the_concatenation_of_its_parts(corpus: Corpus, nsp: bool) -> None:
    sampler = Sampler(corpus, SamplerSettings(64, nsp=nsp), seed=3)
    whole = sampler.batch(sampler.samples_per_epoch - 5, range(16))
    parts = [sampler.batch(sampler.samples_per_epoch - 5, range(start, start + 4)) for start in (0, 4, 8, 12)]
    assert_equal(whole, Batch.joined(parts))
    assert_equal(whole.slice(4, 8), parts[1])


@pytest.mark.parametrize("nsp", [True, False])
def test_any_samples_of_a_batch_can_be_made_alone(corpus: Corpus, nsp: bool) -> None:
    sampler = Sampler(corpus, SamplerSettings(64, nsp=nsp), seed=3)
    whole, some = (sampler.batch(sampler.samples_per_epoch - 5, rows) for rows in (range(16), np.array([1, 4, 5, 12])))
    assert some.samples.tolist() == [1, 4, 5, 12]
    assert np.array_equal(some.input_ids, whole.input_ids[some.samples])
    assert np.array_equal(some.mlm_labels, whole.mlm_labels[some.samples])


def test_lengths_are_known_before_text_is_read_but_for_some_random_pairs(corpus: Corpus) -> None:
    for nsp in (True, False):
        sampler = Sampler(corpus, SamplerSettings(64, nsp=nsp), seed=3)
        start = sampler.samples_per_epoch - 100
        batch = sampler.batch(start, range(300))
        expected, true = sampler.expected_lengths(start + np.arange(300)), batch.attention_mask.sum(axis=1)
        exact = expected == true
        assert exact[batch.nsp_labels != 1].all()
        assert exact.mean() > 0.8
        assert expected.max() <= 64


def test_samples_depend_on_their_number_in_the_run_but_not_on_the_batch_size(sampler: Sampler) -> None:
    assert_equal(sampler.batch(96, range(32)), sampler.batch(64, range(32, 64)), but_for="samples")
    assert sampler.batch(64, range(32, 64)).samples.tolist() == list(range(32, 64))


def test_two_samplers_of_one_seed_agree_and_another_seed_differs(corpus: Corpus, sampler: Sampler) -> None:
    assert_equal(Sampler(corpus, SETTINGS, seed=11).batch(0, range(32)), sampler.batch(0, range(32)))
    assert (
        Sampler(corpus, SETTINGS, seed=12).batch(0, range(32)).input_ids != sampler.batch(0, range(32)).input_ids
    ).any()


def test_an_epoch_uses_every_span_once_and_the_next_epoch_masks_it_differently(corpus: Corpus) -> None:
    settings = SamplerSettings(sequence_length=256, short_sequence_probability=0, nsp=False)
    sampler = Sampler(corpus, settings, seed=1)
    count = sampler.samples_per_epoch
    # The spans are shorter than 256 - 2 or cut at one end, so an epoch's texts are told apart by what they hold.
    epochs = [sampler.batch(epoch * count, range(count)) for epoch in range(2)]
    texts = [sorted(row[row > 4].tolist() for row in unmasked(epoch)) for epoch in epochs]
    assert len({tuple(text) for text in texts[0]}) == count
    assert (epochs[0].input_ids != epochs[1].input_ids).any()
    straddling = sampler.batch(count - 3, range(6))
    assert np.array_equal(straddling.input_ids, np.concatenate([epochs[0].input_ids[-3:], epochs[1].input_ids[:3]]))


def test_a_batch_may_span_several_epochs(corpus_of: Callable[..., Corpus]) -> None:
    sampler = Sampler(corpus_of("One is here. Two is here.\n\nThree is there. Four is there."), SETTINGS, seed=1)
    assert sampler.samples_per_epoch == 2
    assert len(sampler.batch(1, range(50)).input_ids) == 50


def test_a_batch_has_the_documented_shapes_and_dtypes(sampler: Sampler) -> None:
    batch = sampler.batch(0, range(8))
    arrays = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "input_ids": ("int32", (8, 64)),
        "sequence_ids": ("int32", (8, 64)),
        "token_type_ids": ("int32", (8, 64)),
        "mlm_labels": ("int32", (8, 64)),
        "nsp_labels": ("int32", (8,)),
        "samples": ("int64", (8,)),
    }
    assert batch.masked_tokens == (batch.mlm_labels != IGNORE_INDEX).sum()


def test_a_sample_is_two_segments_between_special_tokens(corpus: Corpus, many: Batch) -> None:
    special, ids = corpus.special_tokens, unmasked(many)
    lengths = many.attention_mask.sum(axis=1)
    rows = np.arange(len(ids))
    assert (ids[:, 0] == special.classify).all()
    assert (ids[rows, lengths - 1] == special.separator).all()
    assert ((ids == special.separator).sum(axis=1) == 2).all()
    assert ((ids == special.pad) == ~many.attention_mask).all()
    first_separator = (ids == special.separator).argmax(axis=1)
    column = np.arange(64)
    second = (column > first_separator[:, None]) & (column < lengths[:, None])
    assert (many.token_type_ids == second).all()
    assert (first_separator >= 2).all()
    assert (lengths - first_separator >= 3).all()


def test_neither_special_tokens_nor_padding_are_chosen(corpus: Corpus, many: Batch) -> None:
    chosen = many.mlm_labels != IGNORE_INDEX
    assert not np.isin(many.mlm_labels[chosen], corpus.special_tokens.ids).any()
    assert not (chosen & ~many.attention_mask).any()


def test_15_percent_of_each_sample_are_chosen(many: Batch) -> None:
    counts, lengths = (many.mlm_labels != IGNORE_INDEX).sum(axis=1), many.attention_mask.sum(axis=1)
    expected = np.maximum(np.rint(0.15 * lengths), 1)
    # By whole words fewer may be: where none is left that fits.
    assert (counts <= expected).all()
    assert counts.sum() / expected.sum() > 0.97


def test_80_percent_of_the_chosen_tokens_are_masked_10_random_and_10_kept(corpus: Corpus, many: Batch) -> None:
    chosen = many.mlm_labels != IGNORE_INDEX
    ids, originals = many.input_ids[chosen], many.mlm_labels[chosen]
    mask = corpus.special_tokens.mask
    # A random token is now and then [MASK], or the one that stood there.
    by_chance = 0.1 / corpus.vocab_size
    assert_fraction(ids == mask, 0.8 + by_chance)
    assert_fraction(ids == originals, 0.1 + by_chance)
    drawn = ids[(ids != mask) & (ids != originals)]
    for token in set(range(corpus.vocab_size)) - {mask}:
        assert_fraction(drawn == token, (1 - (originals == token).mean()) / (corpus.vocab_size - 2))


def test_half_of_the_pairs_are_random_and_have_the_same_lengths(many: Batch) -> None:
    assert_fraction(many.nsp_labels == 1, 0.5)
    lengths, random_pair = many.attention_mask.sum(axis=1), many.nsp_labels == 1
    # Where a document ends, the nearest end of a sentence is on average a little later.
    assert abs(lengths[random_pair].mean() / lengths[~random_pair].mean() - 1) < 0.03


@pytest.mark.parametrize("short", [0.0, 0.5])
def test_a_random_segment_comes_from_another_document_and_a_true_one_follows(corpus: Corpus, short: float) -> None:
    chooser = PairChooser(corpus, find_spans(corpus, LONGEST), LONGEST, short)
    span = np.arange(100_000) % (len(chooser.spans) - 1)
    words = random_words(Purpose.PAIR, Coordinates.of(1, 0, np.arange(100_000)), WORDS)
    pairs = chooser.choose(span, words)
    first, second = (documents_of(corpus, start) for start in (pairs.first_start, pairs.second_start))
    random_pair = pairs.labels == 1
    assert (first[random_pair] != second[random_pair]).all()
    assert (first[~random_pair] == second[~random_pair]).all()
    assert (pairs.second_start >= pairs.first_start + pairs.first_length)[~random_pair].all()
    for start, length, document in (
        (pairs.first_start, pairs.first_length, first),
        (pairs.second_start, pairs.second_length, second),
    ):
        assert (length >= 1).all()
        assert (documents_of(corpus, start + length - 1) == document).all()
    total = pairs.first_length + pairs.second_length
    assert total.max() == LONGEST
    # What opens a document follows nothing, so it would tell a random pair.
    opening = corpus.documents.at(second)
    opens = pairs.second_start == corpus.sentences.at(opening)
    assert (corpus.documents.at(second + 1) - opening)[opens].max() == 1
    if not short:
        # Nothing between the segments is left out but by truncation.
        adjacent = pairs.second_start == pairs.first_start + pairs.first_length
        assert (adjacent | random_pair | (total == LONGEST)).all()


def test_all_positions_of_a_full_sample_are_chosen_equally_often(corpus: Corpus, many_by_tokens: Batch) -> None:
    ids, special = unmasked(many_by_tokens), corpus.special_tokens
    full = many_by_tokens.attention_mask.all(axis=1) & (np.isin(ids, special.ids).sum(axis=1) == 3)
    text, chosen = ~np.isin(ids, special.ids)[full], (many_by_tokens.mlm_labels != IGNORE_INDEX)[full]
    for column in np.flatnonzero(text.any(axis=0)):
        assert_fraction(chosen[text[:, column], column], 10 / LONGEST)


def test_the_pieces_of_a_word_are_chosen_together(corpus: Corpus) -> None:
    batch = Sampler(corpus, replace(SETTINGS, whole_word_mask=True), seed=11).batch(0, range(2000))
    continues = continuing_tokens(load_tokenizer(corpus.folder / "tokenizer"))[0][unmasked(batch)]
    chosen = batch.mlm_labels != IGNORE_INDEX
    text = ~np.isin(unmasked(batch), corpus.special_tokens.ids)
    joined = continues[:, 1:] & text[:, :-1] & text[:, 1:]
    assert joined.sum() > 10_000
    assert (chosen[:, 1:] == chosen[:, :-1])[joined].all()
    # All else is as without: the same text, the same labels, nothing drawn differently.
    other = Sampler(corpus, SETTINGS, seed=11).batch(0, range(2000))
    assert (unmasked(batch) == unmasked(other)).all()
    assert (batch.nsp_labels == other.nsp_labels).all()


def test_a_word_ends_where_its_script_has_no_spaces(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ヒ", "##ッ", "##ト", "##pc", "##s", "ก", "pc"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), "utf-8")
    draw = random.Random(1)
    words = "ヒットpcs", "กpcs", "pcs"
    documents = [" ".join(draw.choices(words, k=200)) for _ in range(20)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents), "utf-8")
    prepare([tmp_path / "text.txt"], tmp_path / "corpus", tokenizer=tmp_path, held_out=0)
    batch = Sampler(Corpus.open(tmp_path / "corpus"), replace(SETTINGS, whole_word_mask=True), seed=1).batch(
        0, range(200)
    )
    ids, chosen = unmasked(batch), batch.mlm_labels != IGNORE_INDEX

    def together(first: str, second: str) -> bool:
        first_here, second_here = ids[:, :-1] == tokens.index(first), ids[:, 1:] == tokens.index(second)
        here = first_here & second_here
        assert here.sum() > 100
        return bool((chosen[:, 1:] == chosen[:, :-1])[here].all())

    assert together("##pc", "##s")
    assert together("pc", "##s")
    assert not together("##ト", "##pc")
    assert not together("ก", "##pc")
    assert not together("ヒ", "##ッ")


@pytest.mark.parametrize("letters", ["あいうえおかきくけこさしすせそ", "กขคงจฉชซญดตถทธน"], ids=["Japanese", "Thai"])
def test_text_without_spaces_is_masked_as_often_by_words(letters: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    documents = [" ".join("".join(draw.choices(letters, k=60)) for _ in range(30)) for _ in range(20)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents), "utf-8")
    prepare([tmp_path / "text.txt"], tmp_path / "corpus", vocab_size=200, held_out=0)
    corpus = Corpus.open(tmp_path / "corpus")
    by_words, by_tokens = (
        Sampler(corpus, replace(SETTINGS, whole_word_mask=whole), seed=1).batch(0, range(200)).mlm_labels
        for whole in (True, False)
    )
    masked = (by_words != IGNORE_INDEX).sum(axis=1)
    assert masked.tolist() == (by_tokens != IGNORE_INDEX).sum(axis=1).tolist()
    assert masked.min() > 0


def test_every_other_document_is_drawn_as_a_random_segment(corpus: Corpus) -> None:
    chooser = PairChooser(corpus, find_spans(corpus, LONGEST), LONGEST, 0.0)
    words = random_words(Purpose.PAIR, Coordinates.of(1, 0, np.arange(20_000)), WORDS)
    pairs = chooser.choose(np.full(20_000, 9), words)
    own = int(documents_of(corpus, chooser.spans[9:10])[0])
    drawn = documents_of(corpus, pairs.second_start[pairs.labels == 1])
    assert set(drawn.tolist()) == set(range(corpus.document_count)) - {own}


def test_a_fraction_of_the_samples_is_short(corpus: Corpus) -> None:
    full, short = (
        Sampler(corpus, SamplerSettings(64, short_sequence_probability=share), 1).batch(0, range(3000)).attention_mask
        for share in (0.0, 1.0)
    )
    assert abs(short.sum(axis=1).mean() - (3 + (2 + LONGEST) / 2)) < 5
    assert full.sum(axis=1).mean() > 55


def test_documents_of_one_sentence_give_both_labels(corpus_of: Callable[..., Corpus]) -> None:
    corpus = corpus_of("\n\n".join(f"the {word} is over the hill" for word in ("sun", "moon", "star", "cloud")))
    batch = Sampler(corpus, SETTINGS, seed=1).batch(0, range(400))
    assert abs(batch.nsp_labels.mean() - 0.5) < 0.1
    assert ((unmasked(batch) == corpus.special_tokens.separator).sum(axis=1) == 2).all()


def test_without_nsp_a_sample_is_one_span(corpus: Corpus) -> None:
    batch = Sampler(corpus, SamplerSettings(64, nsp=False), seed=1).batch(0, range(500))
    ids, lengths = unmasked(batch), batch.attention_mask.sum(axis=1)
    assert (batch.nsp_labels == IGNORE_INDEX).all()
    assert (batch.token_type_ids == 0).all()
    assert ((ids == corpus.special_tokens.separator).sum(axis=1) == 1).all()
    assert (ids[np.arange(500), lengths - 1] == corpus.special_tokens.separator).all()
    assert lengths.max() == 64


@pytest.mark.parametrize("length", [5, 6, 7, 512])
def test_short_and_long_sequences_work(corpus: Corpus, length: int) -> None:
    batch = Sampler(corpus, SamplerSettings(length), seed=1).batch(0, range(200))
    assert batch.input_ids.shape == (200, length)
    assert (batch.masked_tokens, batch.attention_mask.sum(axis=1).min()) >= (200, 5)


def test_predictions_are_bounded(corpus: Corpus) -> None:
    batch = Sampler(corpus, SamplerSettings(64, max_predictions=3), seed=1).batch(0, range(100))
    assert (batch.mlm_labels != IGNORE_INDEX).sum(axis=1).max() == 3


def test_impossible_samples_are_refused(corpus: Corpus, tmp_path: Path, corpus_of: Callable[..., Corpus]) -> None:
    with pytest.raises(DataError, match="sequence_length 4 leaves no room"):
        Sampler(corpus, SamplerSettings(4), seed=1)
    three = corpus_of("One is here. Two is here.\n\nThree is there. Four is there.\n\nFive. Six.")
    prepare([three.folder.parent / "text.txt"], tmp_path / "held", vocab_size=200)
    held_out = Corpus.open(tmp_path / "held", "held_out")
    with pytest.raises(DataError, match="one document in its split 'held_out'"):
        Sampler(held_out, SETTINGS, seed=1)
    assert Sampler(held_out, SamplerSettings(64, nsp=False), seed=1).samples_per_epoch == 1
