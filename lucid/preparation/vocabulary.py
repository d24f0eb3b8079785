"""Gathers the text that a tokenizer is trained on: documents that are not held out, chosen by their hashes."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from lucid.errors import DataError
from lucid.files import written_aside
from lucid.preparation.parts import Dropped, Portion, TextSettings, text_hash
from lucid.preparation.selection import HASH_RANGE, Lowest
from lucid.preparation.sources import Contents
from lucid.preparation.tokenizer_training import train_tokenizer

# Bytes of text that a tokenizer is trained on at most: training holds all its distinct words.
SAMPLE_BYTES = 1 << 27


def sample_path(folder: Path, portion: Portion) -> Path:
    """Return where the sample of a portion is."""
    return folder / f"sample-{portion.number:06d}.jsonl"


class SampleMaker:
    """Called with a portion, it writes a share of its documents into `folder`.

    The first line says how many documents there were, their lowest hashes, and what was first left out; the others are
    (hash, text).
    """

    def __init__(self, folder: Path, settings: TextSettings, share: float) -> None:
        self._folder, self._settings, self._below = folder, settings, share * HASH_RANGE

    def path_of(self, task: Portion) -> Path:
        """Return where the sample is."""
        return sample_path(self._folder, task)

    def load(self) -> None:
        """There is nothing to load."""

    def __call__(self, task: Portion) -> None:
        dropped = Dropped()
        reader = self._settings.reader(dropped)
        lowest = Lowest(0, ())
        chosen = []
        for piece in task.pieces:
            for document in reader.documents(piece, self._contents):
                digest = text_hash(document.text)
                # Not the bits that decide the split: what is held out would be all of a small sample.
                split, sample = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8))
                lowest = lowest.joined(Lowest(1, (split,)))
                if sample < self._below:
                    chosen.append(json.dumps([split, document.text]))
        header = json.dumps([lowest.documents, lowest.hashes, dropped.first])
        with written_aside(self.path_of(task), DataError) as file:
            file.writelines(f"{line}\n".encode() for line in (header, *chosen))

    @cached_property
    def _contents(self) -> Contents:
        return Contents()


def train_on_samples(samples: Sequence[Path], held_out: float, vocab_size: int, left_out: str) -> Tokenizer:
    """Train a tokenizer on samples, but for what is held out.

    Raises `DataError` if there is too little text, which says what was left out before (`left_out`), or with a sample.
    """
    lowest = Lowest(0, (), left_out)
    for path in samples:
        with path.open(encoding="utf-8") as file:
            documents, hashes, problem = json.loads(file.readline())
        lowest = lowest.joined(Lowest(documents, tuple(hashes), problem))
    threshold = lowest.threshold(held_out)

    def texts() -> Iterator[str]:
        for path in samples:
            with path.open(encoding="utf-8") as file:
                next(file)
                for line in file:
                    split, text = json.loads(line)
                    if split >= threshold:
                        yield text

    return train_tokenizer(texts, vocab_size)
