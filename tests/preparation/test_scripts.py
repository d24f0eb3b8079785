"""How a tokenizer treats text is chosen by its scripts, unless it is given."""

from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lucid.cli.app import app
from lucid.data import Manifest, load_tokenizer, tokenizer_hash
from lucid.errors import DataError
from lucid.preparation import prepare
from lucid.preparation.scripts import Normalisation, Scripts
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

ENGLISH = "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience."
THAI = "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิต่างมีเหตุผลและมโนธรรมและควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ"
GERMAN = "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie möchten Äpfel, früh und süß."
HINDI = "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि मिली है।"
KOREAN = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."
JAPANESE = "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
# With selectors of their look, a keycap, a skin tone, joiners, and a flag that is written in tags.
EMOJI = "❤️ ☺︎ 1️⃣ 👍🏽 👩‍🚀 🇺🇳 🏴󠁧󠁢󠁳󠁣󠁴󠁿"


def chosen(text: str, cased: bool | None = None, keep_accents: bool | None = None) -> Normalisation:
    return Normalisation.chosen(Scripts.of(Counter(text)), cased, keep_accents)


def trained(*texts: str, vocab_size: int = 300, **settings: bool | int) -> Tokenizer:
    return train_tokenizer(lambda: texts, VocabularySettings(vocab_size, **settings)).tokenizer  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ENGLISH, "scripts: Latin 100%; 0% of the letters carry marks"),
        (ENGLISH + " ﬁﬂ ｆｕｌｌ 𝐛𝐨𝐥𝐝", "scripts: Latin 100%; 0% of the letters carry marks"),
        (GERMAN, "scripts: Latin 100%; 7.7% of the letters carry marks"),
        ("ｶﾞ カ か 漢字 한글 ab", "scripts: Han 22%, Hangul 22%, Katakana 22%, Latin 22%, Hiragana 11%; 10% of"),
        ("a" * 98 + "å" + "я", "scripts: Latin 99%, Cyrillic 1.0%; 1.0% of the letters carry marks"),
        ("e\u0301e" + "a" * 3998, "scripts: Latin 100%; under 0.1% of the letters carry marks"),
        ("कि", "scripts: Devanagari 100%; 100% of the letters carry marks"),
        ("12, 3.", "scripts: none; 0% of the letters carry marks"),
        (f"{ENGLISH} {EMOJI}", "scripts: Latin 100%; 0% of the letters carry marks"),
        (EMOJI, "scripts: none; 0% of the letters carry marks"),
    ],
)
def test_the_scripts_of_a_text_are_named_with_their_shares(text: str, shown: str) -> None:
    assert shown in str(Scripts.of(Counter(text)))


@pytest.mark.parametrize(
    "text",
    [ENGLISH, "12, 3.", f"{ENGLISH} " * 20 + "Zoë, naïve.", f"{ENGLISH} {EMOJI}"],
    ids=["pure", "numbers", "names", "emoji"],
)
def test_english_is_uncased_and_loses_accents(text: str) -> None:
    assert str(chosen(text)) == "uncased, accents stripped"


@pytest.mark.parametrize("text", [GERMAN, HINDI, THAI, KOREAN, JAPANESE, f"{ENGLISH} {HINDI}"])
def test_other_text_is_cased_and_keeps_accents(text: str) -> None:
    longer = ", words of up to 500 characters" if text == THAI else ""
    assert str(chosen(text)) == f"cased, accents kept{longer}"


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        (ENGLISH, (True, None), "cased, accents kept"),
        (ENGLISH, (None, True), "uncased, accents kept"),
        (ENGLISH, (True, False), "cased, accents stripped"),
        (GERMAN, (False, None), "uncased, accents kept"),
        (GERMAN, (None, False), "cased, accents stripped"),
        (GERMAN, (False, False), "uncased, accents stripped"),
    ],
)
def test_what_is_given_is_not_chosen(text: str, given: tuple[bool | None, bool | None], expected: str) -> None:
    assert str(chosen(text, *given)) == expected
    tokenizer = trained(text, cased=given[0], keep_accents=given[1])  # type: ignore[arg-type]
    first = "über" if expected.startswith("uncased") else "Über"
    kept = tokenizer.normalizer.normalize_str("Über")
    assert kept == (first if expected.endswith("kept") else {"über": "uber", "Über": "Uber"}[first])


@pytest.mark.parametrize("text", [GERMAN, HINDI, KOREAN])
def test_a_trained_tokenizer_gives_back_all_letters_and_marks(text: str) -> None:
    tokenizer = trained(text)
    letters = [character for character in text if not character.isspace()]
    decoded = tokenizer.decode(tokenizer.encode(text).ids)
    assert [character for character in decoded if not character.isspace()] == letters


def test_long_clauses_of_text_without_spaces_are_known() -> None:
    tokenizer = trained(THAI, vocab_size=200)
    assert len(THAI) > 100
    assert tokenizer.token_to_id("[UNK]") not in tokenizer.encode(THAI).ids
    assert trained(ENGLISH).model.max_input_chars_per_word == 100


def ideographs(count: int, most: int = 4000) -> list[str]:
    """Return text in which the first of `count` ideographs are more frequent, up to `most` times, as in Chinese."""
    return [chr(0x4E00 + number) * (1 + most // (number + 1)) for number in range(count)]


def known(tokenizer: Tokenizer) -> list[str]:
    return [token for token in tokenizer.get_vocab() if "\u4e00" <= token.removeprefix("##") < "\ua000"]


def test_a_text_of_many_characters_gets_as_many_as_it_needs_and_three_quarters_of_the_vocabulary_at_most() -> None:
    texts = ideographs(3000)
    unknown = {}
    for vocab_size in (1005, 2005, 4005):
        tokenizer = trained(*texts, vocab_size=vocab_size)
        found = known(tokenizer)
        assert not any(token.startswith("##") for token in found)
        ids = tokenizer.encode(" ".join(texts)).ids
        unknown[len(found)] = ids.count(1) / len(ids)
    (small, middle, large) = unknown
    assert (small, middle) == (750, 1500)
    assert 2900 < large < 3000
    assert unknown[large] <= 0.0005 < unknown[middle] < unknown[small]
    assert set(known(trained(*texts, vocab_size=4005, alphabet=20))) == {chr(0x4E00 + number) for number in range(20)}


def test_a_script_with_a_small_share_of_a_text_gets_the_characters_it_needs() -> None:
    texts = ideographs(1500, most=400)
    tokenizer = trained(*texts, "word " * 50_000, vocab_size=4005)
    # Fewer would do for 99.95% of all characters.
    assert len(known(tokenizer)) > 1490
    ids = tokenizer.encode(" ".join(texts)).ids
    assert ids.count(1) / len(ids) <= 0.0005


def test_prepare_says_what_it_chose_and_finds_it_again(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"{GERMAN} {number}" for number in range(20)), encoding="utf-8")
    outcomes: list[str] = []

    def make(**options: object) -> Manifest:
        report = lambda stage, done, total: outcomes.append(stage)  # noqa: E731
        return prepare([tmp_path / "text.txt"], tmp_path / "corpus", vocab_size=200, report=report, **options)  # type: ignore[arg-type]

    first = make()
    assert first.made_from["normalisation"] == f"{Scripts.of(Counter(GERMAN))}: cased, accents kept"
    assert make() == first
    assert "nothing was done" in outcomes[-1]
    with pytest.raises(DataError, match="differs in case, alphabet, tokenizer sample:"):
        make(cased=False, alphabet=40, sample_bytes=1 << 20)
    second = make(cased=False, alphabet=40, overwrite=True)
    assert "uncased, accents kept" in second.made_from["normalisation"]
    assert tokenizer_hash(load_tokenizer(tmp_path / "corpus" / "tokenizer")) == second.tokenizer_hash
    assert second.tokenizer_hash != first.tokenizer_hash


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "cased, accents kept (or --uncased, --strip-accents)"),
        (["--uncased"], "uncased, accents kept (or --strip-accents)"),
        (["--strip-accents"], "cased, accents stripped (or --uncased)"),
        (["--cased", "--keep-accents", "--tokenizer-sample", "1"], "cased, accents kept\n"),
    ],
)
def test_the_options_are_said_with_what_would_change_the_choice(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"{GERMAN} {number}" for number in range(9)), encoding="utf-8")
    arguments = ["prepare", str(tmp_path / "text.txt"), "-o", str(tmp_path / "corpus"), "--processes", "1", *options]
    app([*arguments, "--vocab-size", "150"], standalone_mode=False)
    assert f"of the letters carry marks: {said}" in capsys.readouterr()[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cased": False}, "leave out --uncased$"),
        ({"keep_accents": True, "alphabet": 9}, "leave out --keep-accents, --alphabet$"),
        ({"sample_bytes": 1000}, "leave out --tokenizer-sample$"),
    ],
)
def test_a_given_tokenizer_is_used_as_it_is(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        VocabularySettings(100, **options).check(is_used=False)  # type: ignore[arg-type]


def test_nonsense_is_refused() -> None:
    for settings in (VocabularySettings(100, alphabet=0), VocabularySettings(100, sample_bytes=0)):
        with pytest.raises(DataError, match="too small: take 1 or more"):
            settings.check(is_used=True)
