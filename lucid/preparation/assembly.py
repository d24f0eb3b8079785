"""Makes shards out of parts, and at last the manifest: the corpus as training reads it."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from lucid.data.manifest import (
    DROPPED_FILE,
    TOKENIZER_FOLDER,
    FileRecord,
    Manifest,
    Shard,
    Split,
    frequencies_file,
    record_files,
)
from lucid.data.tokenizer import TOKENIZER_FILES, load_tokenizer, special_tokens, tokenizer_hash
from lucid.errors import DataError
from lucid.files import parse_dataclass, written_aside
from lucid.preparation.parts import load_dropped, load_part
from lucid.preparation.plan import UNFINISHED, Plan
from lucid.preparation.selection import Selection, ShardPlan
from lucid.preparation.writer import Documents, write_shard

DUPLICATE = "duplicate"


@dataclass(frozen=True)
class _Record:
    """What is known of a shard that is written: its counts, its files, and how often each token occurs in it."""

    shard: Shard
    files: dict[str, FileRecord]
    frequencies: list[int]


class ShardMaker:
    """Called with the plan of a shard, it writes the shard, and a record of it."""

    def __init__(self, output: Path, selection: Selection, vocab_size: int) -> None:
        self._output, self._selection, self._vocab_size = output, selection, vocab_size

    def path_of(self, task: ShardPlan) -> Path:
        """Return where the record is."""
        return _record_path(self._output, task)

    def load(self) -> None:
        """There is nothing to load."""

    def __call__(self, task: ShardPlan) -> None:
        shard, frequencies = write_shard(self._output, task.name, self._vocab_size, self._documents(task))
        record = _Record(shard, record_files(self._output, shard.files), frequencies.tolist())
        with written_aside(self.path_of(task), DataError) as file:
            file.write(json.dumps(asdict(record)).encode())

    def _documents(self, plan: ShardPlan) -> Iterator[Documents]:
        unfinished = self._output / UNFINISHED
        for part in plan.parts:
            arrays = load_part(unfinished, part, "tokens", "sentence_lengths", "document_sentences")
            yield Documents(*arrays).only(self._selection.taken(unfinished, part, plan.split))


def _record_path(output: Path, plan: ShardPlan) -> Path:
    return output / UNFINISHED / f"{plan.name}.json"


def finish(output: Path, plan: Plan, selection: Selection) -> None:
    """Put together what is known of all shards, and write the manifest: the corpus is whole."""
    files: dict[str, FileRecord] = {}
    splits = {}
    for name in dict.fromkeys(shard.split for shard in selection.shards):
        records = [
            parse_dataclass(_Record, _record_path(output, shard).read_bytes())
            for shard in selection.shards
            if shard.split == name
        ]
        splits[name] = _split(records)
        with written_aside(output / frequencies_file(name), DataError) as file:
            np.save(file, np.sum([record.frequencies for record in records], axis=0, dtype=np.int64))
        for record in records:
            files |= record.files
    dropped = _write_dropped(output, plan, selection)
    names = [*(f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES), *map(frequencies_file, splits), DROPPED_FILE]
    tokenizer = load_tokenizer(output / TOKENIZER_FOLDER)
    manifest = Manifest(
        made_from=plan.made_from,
        dropped=dropped,
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
        special_tokens=asdict(special_tokens(tokenizer)),
        splits=splits,
        files=dict(sorted((files | record_files(output, names)).items())),
    )
    manifest.write(output)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)


def _split(records: list[_Record]) -> Split:
    shards = tuple(record.shard for record in records)
    return Split(
        documents=sum(shard.documents for shard in shards),
        sentences=sum(shard.sentences for shard in shards),
        tokens=sum(shard.tokens for shard in shards),
        shards=shards,
    )


def _write_dropped(output: Path, plan: Plan, selection: Selection) -> dict[str, int]:
    """List where what was left out was; return how much there is, by reason."""
    counts = Counter({DUPLICATE: selection.duplicates}) if selection.duplicates else Counter()
    with written_aside(output / DROPPED_FILE, DataError) as file:
        parts = (load_dropped(output / UNFINISHED, portion.number) for portion in plan.portions)
        for dropped in (plan.dropped, *parts):
            counts.update(dropped.counts)
            file.writelines(f"{line}\n".encode(errors="backslashreplace") for line in dropped.lines)
    return dict(sorted(counts.items()))
