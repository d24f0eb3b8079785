"""Small corpora, made once: random words in sentences, so that sentences can be told apart."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid.data import Corpus, prepare

_SYLLABLES = ["ba", "co", "du", "fe", "gi", "ka", "lo", "mu", "ne", "pi", "ra", "so", "tu", "ve", "zi"]


def made_up_text(documents: int, seed: int, longest: int = 30) -> str:
    """Return documents of 1 to `longest` sentences, separated by blank lines."""
    draw = random.Random(seed)

    def sentence() -> str:
        words = ["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) for _ in range(draw.randint(2, 20))]
        return " ".join(words).capitalize() + "."

    return "\n\n".join(" ".join(sentence() for _ in range(draw.randint(1, longest))) for _ in range(documents))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 150 documents."""
    path = tmp_path_factory.mktemp("text") / "made_up.txt"
    path.write_text(made_up_text(150, seed=1), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus_folder(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus that tests may read but not alter."""
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare([text_file], folder, vocab_size=200, held_out=0.1)
    return folder


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
