"""Turns text into a corpus that training reads: documents -> sentences -> tokens -> shards, in one stream.

A document is held out for evaluation by a hash of its text, so the same text is on the same side in every corpus.
Memory is bounded by the longest document and the vocabulary, not by the corpus.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lucid.data.corpus import Document, Source, find_sources
from lucid.data.manifest import MANIFEST_NAME, SHARD_PARTS, TOKENIZER_FOLDER, Manifest, Split, record_files
from lucid.data.sentences import split_sentences
from lucid.data.tokenizer import (
    TextEncoder,
    load_tokenizer,
    save_tokenizer,
    special_tokens,
    tokenizer_hash,
    train_tokenizer,
)
from lucid.data.writer import SplitWriter, token_dtype
from lucid.errors import DataError

TRAIN, HELD_OUT = "train", "held_out"
_TOKENIZER_FILES = "tokenizer.json", "vocab.txt", "tokenizer_config.json"

# Sentences longer than this, in tokens, are tables and listings: they are cut.
_LONGEST_SENTENCE = 128
# Characters of text encoded at once.
_BLOCK = 1 << 20
_HASH_RANGE = 1 << 64

# 256 MiB of 16-bit tokens a shard.
TOKENS_PER_SHARD = 1 << 27

Report = Callable[[str], None]


def _say_nothing(message: str) -> None:
    pass


def prepare(
    inputs: Sequence[str | Path],
    output: Path,
    *,
    vocab_size: int = 30522,
    tokenizer: Path | None = None,
    held_out: float = 0.05,
    overwrite: bool = False,
    report: Report = _say_nothing,
) -> Manifest:
    """Prepare the corpus `inputs` (see `read_documents`) in the folder `output`, and return its manifest.

    A WordPiece tokenizer of `vocab_size` tokens is trained on it, or the one in the folder `tokenizer` is used. A share
    `held_out` of the documents, by a hash of their text, goes into the split `held_out`, the others into `train`.
    `report` is told of the progress, at last of the outcome. If `output` already holds the corpus that these arguments
    make, it is left as it is; if it holds another, `overwrite` has to be set. Raises `DataError` on bad input and on
    what cannot be written.
    """
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}: it is a share of the documents, at least 0 and below 1")
    output = Path(output)
    _check_place(inputs, output)
    sources = find_sources(inputs)
    given = None if tokenizer is None else load_tokenizer(Path(tokenizer))
    made_from = {
        "inputs": [source.fingerprint() for source in sources],
        "held_out": held_out,
        "vocab_size": vocab_size if given is None else None,
        "tokenizer": None if given is None else tokenizer_hash(given),
    }
    if not overwrite and (found := _existing(output, made_from)) is not None:
        report(f"{output} holds this corpus already: nothing was done")
        return found

    survey = _survey(sources, held_out, report)
    _clear(output)
    chosen = given if given is not None else _trained(sources, survey, vocab_size, report)
    save_tokenizer(chosen, output / TOKENIZER_FOLDER)
    splits = _write_splits(sources, survey, chosen, output, report)
    manifest = _finish(output, made_from, chosen, splits)
    report(f"{output} holds the corpus")
    return manifest


def _check_place(inputs: Sequence[str | Path], output: Path) -> None:
    for entry in inputs:
        if Path(entry).is_dir() and output.resolve().is_relative_to(Path(entry).resolve()):
            raise DataError(f"output {output} lies within the input folder {entry}: choose a place outside")
    if output.exists() and not output.is_dir():
        raise DataError(f"output {output} is a file: choose a folder")


def _existing(output: Path, made_from: dict[str, Any]) -> Manifest | None:
    """Return the manifest of the corpus in `output`, if any. Raises `DataError` if it was made from something else."""
    if not (output / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.read(output)
    differing = [name.replace("_", " ") for name, value in made_from.items() if manifest.made_from.get(name) != value]
    if differing:
        raise DataError(
            f"{output} holds a corpus made with other {', '.join(differing)}: "
            "choose another folder, or pass --overwrite"
        )
    manifest.check_files(output, checksums=True)
    return manifest


@dataclass(frozen=True)
class _Survey:
    """What a first reading tells: how many documents there are, and below which hash they are held out."""

    documents: int
    threshold: int

    def split_of(self, document: Document) -> str:
        return HELD_OUT if _text_hash(document) < self.threshold else TRAIN


def _text_hash(document: Document) -> int:
    return int.from_bytes(hashlib.sha256(document.text.encode()).digest()[:8], "big")


def _survey(sources: list[Source], held_out: float, report: Report) -> _Survey:
    count = 0

    def hashes() -> Iterator[int]:
        nonlocal count
        for document in _documents(sources, "reading", report):
            count += 1
            yield _text_hash(document)

    # Random next segments need two documents in each split, so a small corpus holds out its two lowest hashes.
    lowest = heapq.nsmallest(2, hashes())
    if count < 2:
        raise DataError(
            f"the input holds {count} document{'s' * (count != 1)}, and pretraining needs two or more: "
            "add text, or separate the documents (by a blank line in .txt)"
        )
    if held_out == 0:
        return _Survey(count, 0)
    if count < 3:
        raise DataError("the input holds 2 documents, too few to hold one out: add text, or pass --held-out 0")
    return _Survey(count, max(round(held_out * _HASH_RANGE), lowest[1 if count >= 4 else 0] + 1))


def _documents(sources: list[Source], stage: str, report: Report, total: int | None = None) -> Iterator[Document]:
    """Yield the documents of all sources, telling how far it is every hundred of them."""
    of_total = "" if total is None else f" of {total:,}"
    count = 0
    for source in sources:
        for document in source.documents():
            if count % 100 == 0:
                report(f"{stage}: {count:,}{of_total} documents")
            count += 1
            yield document


def _trained(sources: list[Source], survey: _Survey, vocab_size: int, report: Report) -> Tokenizer:
    """Return a tokenizer trained on the documents that are not held out."""

    def texts() -> Iterator[str]:
        documents = _documents(sources, "training the tokenizer", report, survey.documents)
        return (document.text for document in documents if survey.split_of(document) == TRAIN)

    return train_tokenizer(texts, vocab_size)


def _clear(output: Path) -> None:
    """Remove what an earlier preparation left: the manifest first, so that the rest is no corpus any more."""
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for split in (TRAIN, HELD_OUT):
        for part in SHARD_PARTS:
            for path in output.glob(f"{split}-[0-9]*.{part}.npy*"):
                path.unlink()


def _write_splits(
    sources: list[Source], survey: _Survey, tokenizer: Tokenizer, output: Path, report: Report
) -> dict[str, Split]:
    dtype = token_dtype(tokenizer.get_vocab_size())
    encoder = TextEncoder(tokenizer)
    names = [TRAIN, HELD_OUT] if survey.threshold else [TRAIN]
    with ExitStack() as stack:
        writers = {name: stack.enter_context(SplitWriter(output, name, dtype, TOKENS_PER_SHARD)) for name in names}
        for block in _blocks(_documents(sources, "encoding", report, survey.documents)):
            for document, sentences in zip(block, _encoded(block, encoder), strict=True):
                writer = writers[survey.split_of(document)]
                if sum(map(len, sentences)) >= 2:
                    writer.add(sentences)
                else:
                    writer.drop("fewer than two tokens")
        splits = {name: writer.finish() for name, writer in writers.items()}
    for name, split in splits.items():
        if split.documents < (2 if name == TRAIN else 1):
            raise DataError(
                f"too few documents are left for {name} ({split.documents}): add text, or change --held-out"
            )
    return splits


def _blocks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Gather documents until there is enough text to keep the tokenizer's threads busy."""
    block: list[Document] = []
    size = 0
    for document in documents:
        block.append(document)
        size += len(document.text)
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _encoded(documents: list[Document], encoder: TextEncoder) -> Iterator[list[list[int]]]:
    """Yield the sentences of each document as ids, empty ones left out, long ones cut."""
    sentences = [split_sentences(document.text) for document in documents]
    ids = encoder.encode([sentence for document in sentences for sentence in document])
    for document in sentences:
        yield [
            sentence[start : start + _LONGEST_SENTENCE]
            for _, sentence in zip(document, ids, strict=False)
            for start in range(0, len(sentence), _LONGEST_SENTENCE)
        ]


def _finish(output: Path, made_from: dict[str, Any], tokenizer: Tokenizer, splits: dict[str, Split]) -> Manifest:
    names = [f"{TOKENIZER_FOLDER}/{name}" for name in _TOKENIZER_FILES]
    names += [name for split in splits.values() for shard in split.shards for name in shard.files]
    manifest = Manifest(
        made_from=made_from,
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
        special_tokens=asdict(special_tokens(tokenizer)),
        splits=splits,
        files=record_files(output, names),
    )
    manifest.write(output)
    return manifest
