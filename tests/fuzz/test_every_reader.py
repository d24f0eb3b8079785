"""Every file that a command reads, filled with what does not belong there: the command works, or says one sentence.

A compressed file is filled with compressed nonsense. The time of the processor and the memory are bounded.
"""

import bz2
import gzip
import lzma
import os
import random
import string
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard
from fork_server import Result
from forks import ForkServer

# Of one command, beyond the start of the server.
PROCESSOR_SECONDS, MEMORY = 10, 1 << 30

PUNCTUATION = "".join(random.Random(1).choices(string.punctuation + " \n", k=100_000)).encode()
CONTENTS = {
    "punctuation": PUNCTUATION,
    "one endless word": b"a" * 2_000_000,
    "lists within lists": b"[" * 100_000,
    "objects within objects": b'{"a": ' * 100_000,
    "a huge number": b"9" * 100_000,
    "huge numbers": b'{"step": 1e999, "vocab_size": ' + b"9" * 4000 + b', "text": -1e400}',
    "NUL bytes": b"\0" * 100_000,
    "not UTF-8": b"\xff\xfe\x80" * 1000,
    "half a surrogate pair": b'{"text": "\\ud800", "model": "\\udfff", "files": {"\\ud800": 1}}\n\xed\xa0\x80',
    "nothing": b"",
    "blank lines": b"\n \r\n\t\r" * 10_000,
    "lines of numbers": b"12\n" * 100_000,
    "no letters at all": b". " * 100_000,
    "accents": ("e" + "\u0301" * 100_000).encode(),
}
PACKED = {".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}
# Bytes of nothing: a file with a hole, or a small compressed one.
HUGE = 1 << 29


@dataclass(frozen=True)
class Reader:
    """A command that reads a file, and the files that would be read in its place."""

    command: tuple[object, ...]
    instead_of: tuple[str, ...] = ()


def preparing(name: str, good: str = "books/b.jsonl", *more: str) -> Reader:
    options = "--vocab-size", 100, "--held-out", 0, "--processes", 1, "--overwrite"
    return Reader(("prepare", name, good, "-o", "new", *options, *more))


def tuning(name: str) -> Reader:
    return Reader(("finetune", "model", "--train", name, "--test", name, "--seeds", 1, "--epochs", 1))


PREDICT = "predict", "model", "One is [MASK] here."
READERS = {
    **{f"text{suffix}": preparing(f"text{suffix}") for suffix in (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".parquet")},
    **{f"text{suffix}": preparing(f"text{suffix}") for suffix in (".jsonl.gz", ".jsonl.zst", ".txt.xz")},
    **{f"text{suffix}": preparing(f"text{suffix}") for suffix in (".csv", ".html", ".arrow")},
    "ids.jsonl": preparing("ids.jsonl", "ids.parquet", "--tokenizer", "model", "--ids-field", "input_ids"),
    "model/tokenizer.json": Reader(PREDICT),
    "model/vocab.txt": Reader(PREDICT, ("model/tokenizer.json",)),
    "model/tokenizer_config.json": Reader(PREDICT, ("model/tokenizer.json",)),
    "model/config.json": Reader(PREDICT),
    "model/model.safetensors": Reader(PREDICT),
    **{name: tuning(name) for name in ("examples.tsv", "words.conll", "words.jsonl")},
    "labels.tsv": Reader(("train", "run.yaml", "run_folder=new", "train.probe=labels.tsv")),
    "model/modules.json": Reader(("embed", "model", "books/a.txt", "-o", "new.npy")),
    "run.yaml": Reader(("plan", "run.yaml")),
    "hosts": Reader(("launch", "-n", 1, "--hostfile", "hosts", "--dry-run", "run.yaml")),
    "run/metrics.jsonl": Reader(("plot", "run")),
    "run/attempts.jsonl": Reader(("report", "run"), ("run/metrics.jsonl",)),  # without curves
    "run/counts.json": Reader(("explain", "run")),
    "corpus/train-00000.origins.npy": Reader(("show", "run", "--step", 1)),
    "corpus/manifest.json": Reader(("plan", "run.yaml")),
    "run/checkpoints/0001-00000002/manifest.json": Reader(("predict", "run", "One is [MASK] here.")),
    "run/checkpoints/0001-00000002/state.json": Reader(("predict", "run", "One is [MASK] here.")),
}


def fault_of(result: Result, most_lines: int) -> str:
    """Return what is wrong with the end of a command; "" if it took its input, or refused it in a sentence."""
    lines = result.errors.splitlines()
    if result.timed_out or result.left_processes or result.code not in (0, 2):
        return f"{result.code}, {result.processor_seconds:.1f} s: {result.errors[-600:]}"
    if result.processor_seconds > PROCESSOR_SECONDS:
        return f"{result.processor_seconds:.1f} s of the processor"
    said = result.code == 0 or (
        lines and lines[0].startswith(("lucid: ", "lucid launch: ")) and len(lines) <= most_lines
    )
    return "" if said and max(map(len, lines), default=0) < 1000 else f"no sentence: {result.errors[:1000]}"


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_a_file_of_nonsense_is_taken_or_refused_in_a_sentence(forks: ForkServer, folder: Path, name: str) -> None:
    reader, path = READERS[name], folder / name
    for other in reader.instead_of:
        (folder / other).unlink()
    if path.exists():
        assert forks.run(*reader.command, folder=folder, memory=MEMORY).code == 0
    pack = PACKED.get(path.suffix)
    if pack is None:
        contents = CONTENTS
    else:
        contents = {kind: pack(CONTENTS[kind]) for kind in ("one endless word", "nothing", "lines of numbers")}
        contents |= {"cut short": pack(PUNCTUATION)[:-9], "not packed": PUNCTUATION, "a bomb": pack(bytes(HUGE // 4))}
    most_lines = 20 if name == "run.yaml" else 1
    faults, seconds = {}, 0.0
    for kind in (*contents, *(() if pack else ("huge",))):
        if kind == "huge":
            os.truncate(path, HUGE)
        else:
            path.write_bytes(contents[kind])
        result = forks.run(*reader.command, folder=folder, memory=MEMORY, seconds=60)
        faults[kind] = fault_of(result, most_lines)
        seconds += result.processor_seconds
    print(f"{seconds:.1f} s of the processor")
    assert {kind: fault for kind, fault in faults.items() if fault} == {}
