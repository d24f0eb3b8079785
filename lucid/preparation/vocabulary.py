"""Trains the WordPiece tokenizer, on a sample of the text without the documents that are held out.

Training is deterministic. The `tokenizers` library alone is not: it numbers the pieces `##x` of one character in the
order of a hash map, and those numbers decide between equally frequent merges. Here they are fixed beforehand.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from lucid.data.tokenizer import LARGEST_VOCABULARY, SPECIAL_TEXTS, bert_tokenizer
from lucid.errors import DataError
from lucid.files import open_text, written_aside
from lucid.preparation.parts import Dropped, Portion, TextSettings, text_hash
from lucid.preparation.processes import Task
from lucid.preparation.selection import HASH_RANGE, Census

# Bytes of text that a tokenizer is trained on at most: training holds all its distinct words.
SAMPLE_BYTES = 1 << 27
SMALLEST_VOCABULARY = 64
# Rarer characters are unknown. (A Chinese corpus needs a tokenizer of its own.)
_LARGEST_ALPHABET = 1000
# The time of training grows with the square of a word's length, so long words are cut. They are unknown anyway.
_LONG_WORD = re.compile(r"\S{1000}")
# Characters that the trainer is given at once, up to a space: it takes tens of bytes for each.
_AT_ONCE = re.compile(r".{1,16384}\S*", re.DOTALL)
# The trainer holds all distinct words, at about a kilobyte each. Text after this many characters of them, with 8 more
# for each word, is left out: 128 MiB of a language have fewer, random numbers soon have as many.
_DISTINCT_CHARACTERS = 12_000_000
_WORD = re.compile("[^\\s!-/:-@[-`{-~\u2010-\u205e\u3000-\u303f]+")


def check_vocab_size(vocab_size: int) -> None:
    """Raise `DataError` if a vocabulary of `vocab_size` tokens is unusually small or large."""
    if not SMALLEST_VOCABULARY <= vocab_size <= LARGEST_VOCABULARY:
        raise DataError(
            f"a vocabulary of {vocab_size} tokens is too {'small' if vocab_size < SMALLEST_VOCABULARY else 'large'}: "
            f"take from {SMALLEST_VOCABULARY} to {LARGEST_VOCABULARY:,}"
        )


class SampleWriter:
    """Writes a sample of a portion: a fraction `fraction` of its documents, chosen by their hashes.

    The first line of the file is the `Census` of the whole portion, each other one is (hash, text).
    """

    def __init__(self, settings: TextSettings, fraction: float) -> None:
        self._settings, self._reader, self._below = settings, settings.reader(), fraction * HASH_RANGE

    def __call__(self, portion: Portion, path: Path) -> None:
        """Write the sample of `portion` as the file `path`."""
        dropped = Dropped()
        drop = self._settings.drop_into(dropped)
        hashes, chosen = [], []
        for piece in portion.pieces:
            for document in self._reader.documents(piece, drop):
                digest = text_hash(document.text)
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
    settings: TextSettings, portions: Sequence[Portion], folder: Path
) -> tuple[SampleWriter, list[Task[Portion]]]:
    """Return what writes a sample of `SAMPLE_BYTES` of text at most, and its tasks, whose files are in `folder`."""
    fraction = min(1.0, SAMPLE_BYTES / max(sum(portion.size for portion in portions), 1))
    tasks = [Task(portion, folder / f"sample-{portion.number:06d}.jsonl", portion.size) for portion in portions]
    return SampleWriter(settings, fraction), tasks


class Samples:
    """The documents in files of a `SampleWriter`, of which the fraction `held_out` is held out as in the corpus.

    Raises `DataError` if there are too few. It names the first omission: `left_out`, or the first of the samples.
    """

    def __init__(self, paths: Sequence[Path], held_out: float, left_out: str) -> None:
        self._paths, self.census = paths, Census(left_out=left_out)
        for path in paths:
            with open_text(path) as file:
                documents, lowest, first = json.loads(file.readline())
            self.census += Census(documents, tuple(lowest), first)
        self._threshold = self.census.threshold(held_out)

    def texts(self, held_out: bool = False) -> Iterator[str]:
        """Yield the texts that are held out, or the others."""
        for path in self._paths:
            with open_text(path) as file:
                next(file)
                for line in file:
                    split, text = json.loads(line)
                    if (split < self._threshold) == held_out:
                        yield text


def train_tokenizer(texts: Callable[[], Iterable[str]], vocab_size: int) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer of at most `vocab_size` tokens, the special ones with ids 0 to 4.

    `texts` is called twice and yields the same texts both times. The result depends on nothing else.
    """
    special = list(SPECIAL_TEXTS.values())
    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TEXTS["unknown"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The alphabet and its continuing pieces take at most half of the vocabulary.
    alphabet = _alphabet(tokenizer, texts(), min(_LARGEST_ALPHABET, (vocab_size - len(special)) // 4))
    continuing = [f"##{character}" for character in alphabet if _continues_a_word(tokenizer, character)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=special + continuing,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(blocks(texts()), trainer=trainer)
    # The trained tokenizer treats the continuing pieces as special: make another one with its vocabulary.
    return bert_tokenizer(tokenizer.get_vocab(), lowercase=True)


def blocks(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts in blocks that end at a space, until they have had all distinct words that memory may hold."""
    known: set[str] = set()
    size = 0
    for text in texts:
        for block in _AT_ONCE.finditer(_LONG_WORD.sub(r"\g<0> ", text)):
            yield block[0]
            new = set(_WORD.findall(block[0].lower())) - known
            known |= new
            size += sum(map(len, new)) + 8 * len(new)
            if size > _DISTINCT_CHARACTERS:
                return


def _alphabet(tokenizer: Tokenizer, texts: Iterable[str], limit: int) -> list[str]:
    """Return the most frequent characters of the normalised texts, sorted."""
    raw: Counter[str] = Counter()
    for text in texts:
        raw.update(text)
    normalised: Counter[str] = Counter()
    for character, count in raw.items():
        for part in tokenizer.normalizer.normalize_str(character):
            normalised[part] += count
    characters = sorted((part for part in normalised if not part.isspace()), key=lambda part: (-normalised[part], part))
    return sorted(characters[:limit])


def _continues_a_word(tokenizer: Tokenizer, character: str) -> bool:
    """Return whether a character can be inside a word: punctuation and ideographs are words of their own."""
    normalised = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(normalised)) == 1
