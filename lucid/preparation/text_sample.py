"""Takes a sample of the text, without the documents that are held out: what a vocabulary is learnt from."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from lucid.errors import DataError
from lucid.files import open_text, written_aside
from lucid.preparation.inputs.documents import Document
from lucid.preparation.inputs.omissions import Dropped
from lucid.preparation.parts import Portion, TextSettings
from lucid.preparation.processes import Task
from lucid.preparation.selection import HASH_RANGE, HOLD_NONE_OUT, Census

# Bytes of text that a tokenizer is trained on at most, unless another number is given.
SAMPLE_BYTES = 1 << 27
# The time of training grows with the square of a word's length, so long words are cut. They are unknown anyway.
_LONG_WORD = re.compile(r"\S{1000}")
# Characters that the trainer is given at once, up to a space: it takes tens of bytes for each.
_AT_ONCE = re.compile(r".{1,16384}\S*", re.DOTALL)
# The trainer holds all distinct words, at about a kilobyte each. Text after this many characters of them, with 8 more
# for each word, is left out: 128 MiB of a language have fewer, random numbers soon have as many. A larger sample may
# have more, in proportion.
_DISTINCT_CHARACTERS = 12_000_000
_WORD = re.compile("[^\\s!-/:-@[-`{-~\u2010-\u205e\u3000-\u303f]+")


class SampleWriter:
    """Writes a sample of a portion: a fraction `fraction` of its documents, chosen by their hashes.

    The first line of the file is the `Census` of the whole portion, each other one is (hash, text).
    """

    def __init__(self, settings: TextSettings, fraction: float) -> None:
        self._read, self._below = settings.reader(), fraction * HASH_RANGE

    def __call__(self, portion: Portion, path: Path) -> None:
        """Write the sample of `portion` as the file `path`."""
        dropped = Dropped()
        hashes, chosen = [], []
        for document in self._read(portion, dropped):
            digest = document.digest()
            # The sample uses other bits than the split: or all of a small sample would be held out.
            split, sample = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8))
            hashes.append(split)
            if sample < self._below:
                chosen.append(json.dumps([split, document.text]))
        census = Census.of(np.array(hashes, np.uint64), dropped.first)
        header = json.dumps([census.documents, census.lowest, census.left_out])
        with written_aside(path, DataError) as file:
            file.writelines(f"{line}\n".encode() for line in (header, *chosen))


def sampling(
    settings: TextSettings, portions: Sequence[Portion], folder: Path, sample_bytes: int = SAMPLE_BYTES
) -> tuple[SampleWriter, list[Task[Portion]]]:
    """Return what writes a sample of `sample_bytes` of text at most, and its tasks, whose files are in `folder`."""
    fraction = min(1.0, sample_bytes / max(sum(portion.size for portion in portions), 1))
    tasks = [Task(portion, folder / f"sample-{portion.number:06d}.jsonl", portion.size) for portion in portions]
    return SampleWriter(settings, fraction), tasks


class TextSample:
    """The documents in the files of `sampling`, of which the fraction `held_out` is held out as in the corpus.

    If they are few and long, all may be held out, or there may be none. Then the first document of the whole text that
    is not held out takes their place. Raises `DataError` if the text has too few documents. It names the first
    omission: `left_out`, or the first of the samples. `Census.threshold` explains `otherwise`.
    """

    def __init__(
        self,
        settings: TextSettings,
        tasks: Sequence[Task[Portion]],
        held_out: float,
        left_out: str,
        otherwise: str = HOLD_NONE_OUT,
    ) -> None:
        paths = [task.output for task in tasks]
        # A reader may have enough before the end. What it has read is then from anywhere, not from the first files.
        self._paths = sorted(paths, key=lambda path: hashlib.sha256(path.name.encode()).digest())
        self.census = Census(left_out=left_out)
        for path in paths:
            with open_text(path) as file:
                documents, lowest, first = json.loads(file.readline())
            self.census += Census(documents, tuple(lowest), first)
        self._threshold = self.census.threshold(held_out, otherwise)
        self._only: str | None = None
        if next(self.texts(), None) is None:
            portions = (task.input for task in tasks)
            documents = chain.from_iterable(map(settings.reader(), portions, repeat(Dropped())))
            self._only = next((each.text for each in documents if _split_hash(each) >= self._threshold), None)

    def texts(self, held_out: bool = False) -> Iterator[str]:
        """Yield the texts that are held out, or the others, from one file after another in a fixed random order."""
        for path in self._paths:
            with open_text(path) as file:
                next(file)
                for line in file:
                    split, text = json.loads(line)
                    if (split < self._threshold) == held_out:
                        yield text
        if self._only is not None and not held_out:
            yield self._only


def _split_hash(document: Document) -> int:
    return int.from_bytes(document.digest()[:8], "big")


def blocks(texts: Iterable[str], cased: bool = False, sample_bytes: int = SAMPLE_BYTES) -> Iterator[str]:
    """Yield the texts in blocks that end at a space, until they have had all distinct words that memory may hold."""
    most = _DISTINCT_CHARACTERS * max(sample_bytes, SAMPLE_BYTES) // SAMPLE_BYTES
    known: set[str] = set()
    size = 0
    for text in texts:
        for block in _AT_ONCE.finditer(_LONG_WORD.sub(r"\g<0> ", text)):
            yield block[0]
            new = set(_WORD.findall(block[0] if cased else block[0].lower())) - known
            known |= new
            size += sum(map(len, new)) + 8 * len(new)
            if size > most:
                return
