"""Which languages `prepare` knows, by code and by name."""

from pathlib import Path

import pytest

from lucid.errors import DataError
from lucid.preparation import prepare
from lucid.preparation.languages import LANGUAGES, language_code
from lucid.preparation.sentences import split_sentences


@pytest.mark.parametrize("given", ["de", "DE", " de ", "German", "german", "GERMAN", "de-AT", "de_CH"])
def test_a_language_has_a_code_and_a_name(given: str) -> None:
    assert language_code(given) == "de"


def test_every_language_is_found_by_its_code_and_its_name() -> None:
    for code, name in LANGUAGES.items():
        assert language_code(code) == language_code(name) == code


@pytest.mark.parametrize("given", ["Thai", "th", "Korean", "ko", "Persian", "ur"])
def test_languages_with_hardly_any_abbreviations_are_known(given: str) -> None:
    assert list(split_sentences("See 3.5. Then go.", language_code(given))) == ["See 3.5.", "Then go."]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("Germn", r"'Germn' is unknown: did you mean German \(de\)\?"),
        ("deutsch", r"'deutsch' is unknown: "),
        ("xx", r"'xx' is unknown: known are Amharic \(am\), .*, Chinese \(zh\)\. "),
        ("", "'' is unknown: known are"),
    ],
)
def test_an_unknown_language_is_refused_before_any_work(tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare([tmp_path], tmp_path / "corpus", language=given)
    assert not (tmp_path / "corpus").exists()


def test_the_name_and_the_code_of_a_language_make_the_same_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"Am {day}. Mai kam er. Dann ging er." for day in range(1, 9)))
    made = prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=100, language="German")
    assert made.made_from["language"] == "de"
    assert sum(split.sentences for split in made.splits.values()) == 16
    assert prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=100, language="de") == made


def test_chinese_sentences_end_at_their_own_full_stop() -> None:
    assert list(split_sentences("船在天亮之前离开了港口。码头上没有人。", "zh")) == [
        "船在天亮之前离开了港口。",
        "码头上没有人。",
    ]
