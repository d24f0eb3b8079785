"""Splitting text into sentences."""

import pytest

from lucid.preparation.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there! Is three?", ["One is here.", "Two is there!", "Is three?"]),
        ("Dr. Smith paid 3.50 for it. He left.", ["Dr. Smith paid 3.50 for it.", "He left."]),
        ("A heading\n\nA sentence.", ["A heading", "A sentence."]),
        ("A sentence that was wrapped in the middle\nof its words, as is usual.", None),
        ("A sentence wrapped just before a\nCapital letter, as the word\nwould not have fitted.", None),
        ("- milk\n- bread and butter\n* eggs", ["- milk", "- bread and butter", "* eggs"]),
        ("History\nThe town was founded in a year.", ["History", "The town was founded in a year."]),
        ("Do this:\n\n1. Sit down.\n2. Stand up.", ["Do this:", "1. Sit down.", "2. Stand up."]),
        ("", []),
        (" \n\n\t\n", []),
        ("1.", ["1."]),
    ],
)  # fmt: skip
def test_text_is_split_at_punctuation_and_layout(text: str, sentences: list[str] | None) -> None:
    assert list(split_sentences(text)) == ([" ".join(text.split())] if sentences is None else sentences)


def test_in_unwrapped_text_each_line_is_a_paragraph() -> None:
    line = "A paragraph of many words that somebody wrote on a single line " * 3
    assert len(list(split_sentences(f"{line}\n{line}"))) == 2


def test_the_language_determines_the_abbreviations() -> None:
    text = "Am 3. Mai kam er. Dann ging er."
    assert list(split_sentences(text, "de")) == ["Am 3. Mai kam er.", "Dann ging er."]
    assert len(list(split_sentences(text, "en"))) == 3


def test_no_word_is_lost() -> None:
    text = "Alpha beta (gamma. Delta) 12 epsilon\n\n  zeta: 3. eta\n  theta\n\n4.\n"
    assert " ".join(split_sentences(text)).split() == text.split()
