"""Prepares a made-up corpus of any size, and measures speed, memory and exactness.

The words follow Zipf's law, more steeply beyond rank six thousand, like those of English (Ferrer i Cancho and Sole,
"Two regimes in the frequency of words", 2001): 2 GB hold about a million words. One percent of the documents occur
twice. For comparison, `tokenizers` alone encodes some of the same text on one thread, before and after each run. Rates
a core are megabytes of text for each second of processor time, so that other work on the machine matters little.
Memory is the sum over all processes, and counts pages that several of them share once (PSS).

With --kill all processes are killed when half of the text is encoded, and the same command is run again. With --compare
the corpus is also prepared by other numbers of processes. Both have to give the same files, to the last byte. Without
--tokenizer one is trained first, in a run of its own. The folder needs room for five times the text. All of it is
removed at the end.

    python benchmarks/preparation.py FOLDER [--megabytes 2000] [--processes 2] [--kill] [--compare 1 4]
        [--tokenizer DIR]
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# `tokenizers` alone gets one thread.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from lucid.data import Corpus, Sampler, SamplerSettings, load_tokenizer
from lucid.data.spans import find_spans
from lucid.preparation.stages import PIECE_BYTES

WORDS = 3_000_000
# The probability of the word of rank r falls like 1 / r up to this rank, and like 1 / r^2 beyond it.
STEEPER = 6000
SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"]
FILES = 4


def word(rank: int) -> str:
    """Return the word of a rank: the more frequent, the shorter."""
    syllables = []
    rank += 1
    while rank:
        rank, place = divmod(rank, len(SYLLABLES))
        syllables.append(SYLLABLES[place])
    return "".join(syllables)


def zipf_ranks(draw: np.random.Generator, count: int) -> np.ndarray:
    """Return int64 [count]: ranks from 0, drawn by inverting the sum of the probabilities."""
    below, beyond = np.log(STEEPER), 1 - STEEPER / WORDS
    place = draw.random(count) * (below + beyond)
    ranks = np.where(place < below, np.exp(place), STEEPER / np.maximum(1 - (place - below), STEEPER / WORDS))
    return ranks.astype(np.int64) - 1


def documents(megabytes: float, seed: int) -> Iterator[str]:
    draw = np.random.default_rng(seed)
    words = np.array([word(rank) for rank in range(WORDS)], dtype=object)
    written = 0
    while written < megabytes * 1e6:
        ranks = zipf_ranks(draw, 1_000_000)
        sentences = [
            " ".join(run).capitalize() + "." for run in np.split(words[ranks], np.cumsum(draw.integers(4, 30, 58_000)))
        ]
        for run in np.split(np.array(sentences, dtype=object), np.cumsum(draw.integers(2, 60, 1_800))):
            text = " ".join(run)
            written += len(text) * (2 if draw.random() < 0.01 else 1)
            yield text
            if draw.random() < 0.01:
                yield text


def generate(folder: Path, megabytes: float) -> None:
    folder.mkdir(parents=True)
    for number in range(FILES):
        with (folder / f"{number}.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents(megabytes / FILES, number))


def descendants(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        try:
            threads = Path(f"/proc/{process}/task").iterdir()
            found += [int(child) for thread in threads for child in (thread / "children").read_text().split()]
        except OSError:  # it has ended meanwhile
            continue
    return found


def megabytes_of(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


@dataclass(frozen=True)
class Run:
    """The cost of `lucid prepare` in seconds and megabytes. A killed run counts both starts, except in `busy`."""

    seconds: float
    busy: float
    memory: float


def prepared(text: Path, output: Path, processes: int, *options: str, kill: bool = False) -> Run:
    """Run `lucid prepare`. With `kill`, kill all its processes half-way, and run it again."""
    command = [sys.executable, "-m", "lucid", "prepare", str(text), "-o", str(output), "--processes", str(processes)]
    size = sum(path.stat().st_size for path in text.iterdir())
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    memory = 0.0
    for killed in [True, False] if kill else [False]:
        process = subprocess.Popen(
            [*command, "--drop-duplicates", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None:
            memory = max(memory, sum(map(megabytes_of, descendants(process.pid))))
            if killed and PIECE_BYTES * len(list(output.glob("unfinished/part-*.npz"))) >= size / 2:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.5)
        if process.returncode != (-signal.SIGKILL if killed else 0):
            sys.exit(f"lucid prepare ended with exit code {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(time.perf_counter() - started, busy, memory)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def tokenizers_alone(tokenizer: Path, text: Path) -> float:
    """Return the MB/s at which `tokenizers` encodes the first documents of a file, on one thread."""
    encoder, size = load_tokenizer(tokenizer), 0
    started = time.thread_time()
    with text.open() as file:
        for line, _ in zip(file, range(2000), strict=False):
            sentences = json.loads(line)["text"].split(". ")
            size += len(line)
            for encoding in encoder.encode_batch_fast(sentences, add_special_tokens=False):
                assert encoding.ids
    return size / (time.thread_time() - started) / 1e6


def report_reading(folder: Path) -> None:
    """Print how long it takes to open the corpus, and to make sequences of it."""
    started = time.perf_counter()
    corpus = Corpus.open(folder)
    opened = time.perf_counter()
    spans = find_spans(corpus, 125)
    print(f"opening it takes {opened - started:.2f} s, finding {len(spans) - 1:,} spans", end=" ")
    print(f"{time.perf_counter() - opened:.2f} s")
    sampler = Sampler(corpus, SamplerSettings(128), 0)
    started = time.thread_time()
    for step in range(20):
        sampler.batch(step * 256, range(256))
    print(f"a thread makes {20 * 256 / (time.thread_time() - started):,.0f} sequences a second")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer to use")
    parser.add_argument("--kill", action="store_true", help="also kill a run half-way, and go on with it")
    parser.add_argument("--compare", type=int, nargs="*", default=[], metavar="PROCESSES", help="also with these")
    parser.add_argument("--keep", action="store_true", help="do not remove the text and the corpora")
    return parser.parse_args()


def main() -> None:
    arguments = parsed()
    folder = arguments.folder / "benchmark-preparation"
    text, first, other, trained = (folder / name for name in ("text", "first", "other", "trained"))
    if not text.exists():
        generate(text, arguments.megabytes)
    megabytes = sum(path.stat().st_size for path in text.iterdir()) / 1e6
    print(f"{megabytes:.0f} MB of text in {FILES} files, load {os.getloadavg()[0]:.1f}")
    print(f"{'':34} {'seconds':>8} {'busy':>8} {'MB/s a core':>12} {'of tokenizers':>14} {'peak MB':>8}  same bytes")
    tokenizer = arguments.tokenizer or trained / "tokenizer"

    def row(what: str, output: Path, processes: int, *options: str, kill: bool = False) -> None:
        alone = [tokenizers_alone(tokenizer, text / "0.jsonl")] if tokenizer.exists() else []
        shutil.rmtree(output, ignore_errors=True)
        run = prepared(text, output, processes, *options, kill=kill)
        alone.append(tokenizers_alone(tokenizer, text / "0.jsonl"))
        # The processor time of a killed run is unknown: nobody waited for its workers.
        rate = float("nan") if kill else megabytes / run.busy
        share = f"{rate / (sum(alone) / len(alone)):.0%} of {sum(alone) / len(alone):.2f}"
        same = {True: "yes", False: "NO"}[digests(output) == digests(first)] if output == other else ""
        print(
            f"{what:34} {run.seconds:8.0f} {run.busy:8.0f} {rate:12.2f} {share:>14} {run.memory:8.0f}  {same}",
            flush=True,
        )

    try:
        if arguments.tokenizer is None:
            row(f"{arguments.processes} processes, a tokenizer trained", trained, arguments.processes)
        options = ("--tokenizer", str(tokenizer))
        row(f"{arguments.processes} processes, a tokenizer given", first, arguments.processes, *options)
        if arguments.kill:
            row("the same, killed half-way", other, arguments.processes, *options, kill=True)
        for processes in arguments.compare:
            row(f"{processes} processes", other, processes, *options)
        report_reading(first)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
