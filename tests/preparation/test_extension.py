"""The words that extend a vocabulary: how they are counted and chosen, and what the longer vocabulary encodes."""

from collections import Counter

import pytest
from tokenizers import AddedToken, Tokenizer

from lucid.data.tokenizer import bert_tokenizer, load_tokenizer, save_tokenizer, without_special_tokens
from lucid.errors import DataError
from lucid.preparation import extension
from lucid.preparation.extension import Coverage, NewWord, count_words, most_split, with_words

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "heart", "##s", "the", ".", ",", "雲"]
VOCABULARY = {word: number for number, word in enumerate(dict.fromkeys(WORDS))}
TEXTS = ["The hearts, the HÉARTS.\nA myocarditis", "hearts雲雨 myocarditis 2024 2024 2024 x" + "y" * 120, "雨 雨 [UNK]"]
NORMALISATION = [{"lowercase": True}, {"lowercase": False}, {"lowercase": True, "strip_accents": False}]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return bert_tokenizer(VOCABULARY, lowercase=True)


def test_words_are_counted_as_the_tokenizer_makes_them(tokenizer: Tokenizer) -> None:
    assert count_words(tokenizer, TEXTS) == {
        "the": 2,
        "hearts": 3,
        ",": 1,
        ".": 1,
        "a": 1,
        "myocarditis": 2,
        "雲": 1,
        "雨": 3,
        "2024": 3,
        "x" + "y" * 100: 1,
        "[": 1,
        "unk": 1,
        "]": 1,
    }


@pytest.mark.parametrize("normalisation", NORMALISATION, ids=str)
def test_coverage_counts_the_tokens_that_the_tokenizer_makes(normalisation: dict[str, bool]) -> None:
    tokenizer = bert_tokenizer(VOCABULARY, **normalisation)
    plain = without_special_tokens(tokenizer)
    ids = [token for text in TEXTS for token in plain.encode(text, add_special_tokens=False).ids]
    coverage = Coverage.of(tokenizer, count_words(tokenizer, TEXTS))
    assert (coverage.tokens, coverage.unknown) == (len(ids), ids.count(VOCABULARY["[UNK]"]))
    words = [word for text in TEXTS for word in plain.encode(text, add_special_tokens=False).word_ids]
    # The number of a word begins again in each text.
    assert coverage.words == sum(1 for before, word in zip([None, *words], words, strict=False) if word != before)


def test_added_tokens_are_no_words(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<E1>", special=True, normalized=False), AddedToken("covid", single_word=True)])
    counts = count_words(tokenizer, ["<E1>Anna<E1>", "Covid covids <e1>"])
    assert counts == {"anna": 1, "covids": 1, "<": 1, "e1": 1, ">": 1}


def test_counts_do_not_depend_on_how_many_stretches_are_held(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = count_words(tokenizer, TEXTS)
    monkeypatch.setattr(extension, "_STRETCHES", 1)
    assert count_words(tokenizer, TEXTS) == expected


def test_counting_ends_where_there_are_too_many_distinct_words(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lucid.preparation.text_sample._DISTINCT_CHARACTERS", 20_000)
    texts = (" ".join(f"{word:x}" for word in range(number, number + 100)) for number in range(0, 1 << 40, 100))
    assert 1000 < len(count_words(tokenizer, texts)) < 3000


def test_words_that_save_most_tokens_come_first_and_equals_in_order(tokenizer: Tokenizer) -> None:
    counts = {"heart": 99, "hearts": 10, "zaz": 5, "abc": 5, "abcdef": 2, "lung": 4, "rare": 1}
    assert [word.text for word in most_split(tokenizer, counts, 5, 2)] == ["lung", "abc", "abcdef", "hearts", "zaz"]
    assert most_split(tokenizer, dict(reversed(counts.items())), 5, 2) == most_split(tokenizer, counts, 5, 2)
    pieces = tuple(VOCABULARY[piece] for piece in ("l", "##u", "##n", "##g"))
    assert most_split(tokenizer, counts, 1, 2) == [NewWord("lung", 4, pieces)]


def test_unknown_words_are_worth_their_characters_and_numbers_nothing(tokenizer: Tokenizer) -> None:
    counts = {"雨": 4, "αβγ": 3, "2024": 1000, "x" * 101: 1000, "b2": 5}
    found = most_split(tokenizer, counts, 3, 1)
    assert [word.text for word in found] == ["αβγ", "b2", "雨"]
    assert [word.pieces for word in found] == [(), (VOCABULARY["b"], VOCABULARY["##2"]), ()]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            3,
            "3 new tokens were asked for, but the text has only 2 words that are frequent enough "
            r"\(--at-least 5\)",
        ),
        (1 << 20, r"a vocabulary of 1,048,658 tokens is too large: 1,048,576 is the most"),
    ],
)
def test_more_tokens_than_there_can_be_are_refused(tokenizer: Tokenizer, tokens: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        most_split(tokenizer, {"lung": 5, "liver": 6, "skin": 4, "heart": 50}, tokens, 5)


@pytest.mark.parametrize("normalisation", NORMALISATION, ids=str)
def test_new_words_are_one_token_and_all_other_ids_stay(normalisation: dict[str, bool], tmp_path) -> None:
    before = bert_tokenizer(VOCABULARY, **normalisation)
    extended = with_words(before, ["myocarditis", "雨"])
    size = before.get_vocab_size()
    save_tokenizer(extended, tmp_path)
    for tokenizer in (extended, load_tokenizer(tmp_path), Tokenizer.from_file(str(tmp_path / "tokenizer.json"))):
        assert tokenizer.get_vocab_size() == size + 2
        for text in ["the hearts, Héarts.", "[MASK] a myocardi2 carditis雲", ""]:
            assert tokenizer.encode(text).ids == before.encode(text).ids
        assert tokenizer.encode("myocarditis雨 myocarditiss", add_special_tokens=False).ids == [
            size,
            size + 1,
            size,
            VOCABULARY["##s"],
        ]


def test_added_tokens_keep_their_ids(tokenizer: Tokenizer, tmp_path) -> None:
    tokenizer.add_tokens([AddedToken("<E1>", special=True, normalized=False), "covid19"])
    size = tokenizer.get_vocab_size()
    save_tokenizer(with_words(tokenizer, ["myocarditis"]), tmp_path)
    extended = load_tokenizer(tmp_path)
    text = "<E1>Anna<E1> covid19 covid19s Covid19"
    assert extended.encode(text).ids == tokenizer.encode(text).ids
    assert extended.token_to_id("myocarditis") == size


def test_words_that_are_spelt_like_added_tokens_are_not_added_again(tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("covid", normalized=False)])
    counts = count_words(tokenizer, ["covid Covid Covid lung"])
    assert counts == {"covid": 2, "lung": 1}
    assert [word.text for word in most_split(tokenizer, counts, 1, 1)] == ["lung"]


def test_a_longer_vocabulary_makes_fewer_tokens_of_the_text(tokenizer: Tokenizer) -> None:
    counts = Counter({"hearts": 10, "lung": 4, "the": 3})
    words = [word.text for word in most_split(tokenizer, counts, 2, 1)]
    before, after = Coverage.of(tokenizer, counts), Coverage.of(with_words(tokenizer, words), counts)
    assert (before.tokens, after.tokens, after.words) == (39, 17, 17)
