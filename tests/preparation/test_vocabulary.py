"""A trained tokenizer has the requested size, and is the same in every process."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lucid.errors import DataError
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

TEXTS = ["The quick brown foxes jumped over the lazy dogs' backs.", "Quickly, quicker, quickest: the fox was quick!"]
TEXTS += ["Über den Wölken 雲 muß die Freiheit wohl grenzenlos sein."]


def test_the_vocabulary_has_the_requested_size_at_most() -> None:
    assert 64 < train_tokenizer(lambda: TEXTS, VocabularySettings(200)).tokenizer.get_vocab_size() <= 200
    assert train_tokenizer(lambda: TEXTS, VocabularySettings(64)).tokenizer.get_vocab_size() == 64


@pytest.mark.parametrize(("size", "what"), [(63, "small"), ((1 << 20) + 1, "large")])
def test_a_vocabulary_has_a_usual_size(size: int, what: str) -> None:
    with pytest.raises(DataError, match=f"{size} tokens is too {what}: take from 64 to 1,048,576"):
        VocabularySettings(size).check(is_used=True)


def test_training_gives_the_same_vocabulary_in_every_process() -> None:
    program = (
        "from pydoc_data.topics import topics\n"
        "from lucid.data import tokenizer_hash\n"
        "from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer\n"
        "print(tokenizer_hash(train_tokenizer(topics.values, VocabularySettings(1000)).tokenizer))"
    )
    hashes = set()
    for threads in ("1", "2", "3"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1


def test_training_ends_when_it_has_met_too_many_distinct_words(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield " ".join(f"{word:x}" for word in range(100 * number, 100 * number + 100))

    monkeypatch.setattr("lucid.preparation.text_sample._DISTINCT_CHARACTERS", 20_000)
    train_tokenizer(texts, VocabularySettings(100))
    # Every text is read for the alphabet.
    assert read[:100] == list(range(100))
    assert 10 < len(read) - 100 < 25
