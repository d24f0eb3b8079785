"""Corpora of the data room's tests; the text and the prepared folder are those of all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid.data import Corpus
from lucid.preparation import prepare


@pytest.fixture(scope="session")
def corpus(corpus_folder: Path) -> Corpus:
    return Corpus.open(corpus_folder)


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Corpus]:
    """Makes the corpus of a text, all of it in the split `train`."""

    def make(text: str) -> Corpus:
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        prepare([tmp_path / "text.txt"], tmp_path / "corpus", vocab_size=200, held_out=0)
        return Corpus.open(tmp_path / "corpus")

    return make
