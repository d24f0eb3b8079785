"""Encoding each distinct word once gives the same ids as `tokenizers`."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lucid.preparation.encoder import TextEncoder
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

TEXTS = [
    "The quick brown foxes jumped over the lazy dogs' backs; don't they? e-mail: a.b@c.de (3.14%) naïve café Straße",
    "Über den Wölken 雲の上 muß die Freiheit wohl grenzenlos sein. 한국어 ελληνικός русский ÅÉÎ",
]
# Characters that BERT's normalisation and splitting treat specially, or that other tools join or separate.
STRANGE = [
    *(
        "[MASK]",
        "[CLS]",
        "[SEP]",
        "[PAD]",
        "[UNK]",
        "##s",
        "雲",
        "上",
        "雲の上，上雲。",
        "㐀\u3099",
        "한국",
        "ﬁ",
        "ß",
        "İ",
        "Σ",
        "ΟΔΟΣ",
        "\U0001f600",
    ),
    *("e\u0301", "\u0301", "\u0000", "\u0001", "\u001c", "\u0085", "\u00a0", "\u00ad", "\u180e", "\u200b", "\u200d"),
    *("\u2028", "\u3000", "\ufeff", "\ufffd", "\t", "\n", "\r", " ", "  ", "'", "'s", "...", "_", "$", "`", "~", "a-b"),
    *("a" * 101, "\U0001f600"),
]


@pytest.fixture(scope="module", params=["uncased", "cased", "ideographs in words"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    tokenizer = train_tokenizer(lambda: TEXTS, VocabularySettings(300)).tokenizer
    if request.param != "uncased":
        from tokenizers import normalizers

        tokenizer.normalizer = normalizers.BertNormalizer(
            lowercase=False, handle_chinese_chars=request.param == "cased"
        )
    return tokenizer


def ids_of_tokenizers(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    """The ids of whole sentences by the library itself. Special tokens spelt out in them are text."""
    plain = Tokenizer(tokenizer.model)
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return [encoding.ids for encoding in plain.encode_batch(sentences, add_special_tokens=False)]


def assert_same(encoder: TextEncoder, tokenizer: Tokenizer, sentences: list[str]) -> None:
    ids, counts = encoder.encode(sentences)
    expected = ids_of_tokenizers(tokenizer, sentences)
    assert counts.tolist() == [len(each) for each in expected]
    assert ids.tolist() == [token for each in expected for token in each]


some_text = st.lists(st.one_of(st.sampled_from([*STRANGE, *" ".join(TEXTS).split()]), st.text()), max_size=12)


@given(sentences=st.lists(some_text.map("".join) | some_text.map(" ".join), max_size=6))
def test_ids_equal_those_of_tokenizers(tokenizer: Tokenizer, sentences: list[str]) -> None:
    assert_same(TextEncoder(tokenizer, most_bytes=1 << 20), tokenizer, sentences)


def test_every_character_is_encoded_as_by_tokenizers(tokenizer: Tokenizer) -> None:
    characters = [chr(code) for code in range(0x3100) if not 0xD800 <= code < 0xE000]
    assert_same(
        TextEncoder(tokenizer, most_bytes=1 << 20),
        tokenizer,
        [f"a{one}b {one} {one}fox fox{one}" for one in characters],
    )


def test_forgotten_words_are_encoded_again(tokenizer: Tokenizer) -> None:
    encoder = TextEncoder(tokenizer, most_bytes=1000)
    for sentence in [*TEXTS, *reversed(TEXTS), "fox", ""]:
        assert_same(encoder, tokenizer, [sentence, "the fox"])


def test_many_sentences_are_encoded_as_by_tokenizers(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid.preparation.encoder._CHARACTERS_AT_ONCE", 50)
    monkeypatch.setattr("lucid.preparation.encoder._WORDS_AT_ONCE", 3)
    assert_same(TextEncoder(tokenizer, most_bytes=2000), tokenizer, [*TEXTS, "", *STRANGE, *TEXTS])


def test_remembered_words_stay_within_their_memory(tokenizer: Tokenizer) -> None:
    tracemalloc.start()
    try:
        encoder = TextEncoder(tokenizer, most_bytes=1 << 18)
        for start in range(0, 10_000, 500):
            encoder.encode([f"{word:x}" for word in range(start, start + 500)])
        remembered, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 1 << 16 < remembered < 1.5 * (1 << 18)


def test_no_sentences_have_no_ids(tokenizer: Tokenizer) -> None:
    ids, counts = TextEncoder(tokenizer, most_bytes=1 << 20).encode([])
    assert (ids.shape, counts.shape) == ((0,), (0,))


def test_a_special_token_spelt_out_in_the_text_is_text(tokenizer: Tokenizer) -> None:
    ids, _ = TextEncoder(tokenizer, most_bytes=1 << 20).encode(["the [MASK] [SEP] fox [PAD]"])
    assert not np.isin(ids, [0, 2, 3, 4]).any()
