"""Gathers the text that a tokenizer is trained on: documents that are not held out, chosen by their hashes."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from lucid.data.parts import Dropped, Portion, TextSettings, text_hash
from lucid.data.selection import Lowest
from lucid.data.sources import Contents
from lucid.data.tokenizer import train_tokenizer
from lucid.errors import DataError
from lucid.files import written_aside

# Bytes of text that a tokenizer is trained on at most: training holds all its distinct words.
SAMPLE_BYTES = 1 << 28
_HASH_RANGE = 1 << 64


def sample_path(folder: Path, number: int) -> Path:
    """Return where the sample of a portion is."""
    return folder / f"sample-{number:06d}.jsonl"


class SampleMaker:
    """Called with a portion, it writes a share of its documents into `folder`; it may be sent to another process.

    The first line says how many documents there were, and their lowest hashes; the others are (hash, text).
    """

    def __init__(self, folder: Path, settings: TextSettings, share: float) -> None:
        self._folder, self._settings, self._below = folder, settings, share * _HASH_RANGE

    def __call__(self, portion: Portion) -> None:
        reader = self._settings.reader(Dropped())
        lowest = Lowest(0, ())
        chosen = []
        for piece in portion.pieces:
            for document in reader.documents(piece, self._contents):
                digest = text_hash(document.text)
                # Not the bits that decide the split: what is held out would be all of a small sample.
                split, sample = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8))
                lowest = lowest.joined(Lowest(1, (split,)))
                if sample < self._below:
                    chosen.append(json.dumps([split, document.text]))
        header = json.dumps([lowest.documents, lowest.hashes])
        with written_aside(sample_path(self._folder, portion.number), DataError) as file:
            file.writelines(f"{line}\n".encode() for line in (header, *chosen))

    @cached_property
    def _contents(self) -> Contents:
        return Contents()


def train_on_samples(folder: Path, portions: Sequence[Portion], held_out: float, vocab_size: int) -> Tokenizer:
    """Train a tokenizer on the samples in `folder`, but for what is held out. `DataError` if there is too little."""
    lowest = Lowest(0, ())
    for portion in portions:
        with sample_path(folder, portion.number).open(encoding="utf-8") as file:
            documents, hashes = json.loads(file.readline())
        lowest = lowest.joined(Lowest(documents, tuple(hashes)))
    threshold = lowest.threshold(held_out)

    def texts() -> Iterator[str]:
        for portion in portions:
            with sample_path(folder, portion.number).open(encoding="utf-8") as file:
                next(file)
                for line in file:
                    split, text = json.loads(line)
                    if split >= threshold:
                        yield text

    return train_tokenizer(texts, vocab_size)
