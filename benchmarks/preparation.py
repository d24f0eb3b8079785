"""Prepares a made-up corpus of any size, and says how fast that was and how much memory all processes took.

The words follow Zipf's law, more steeply beyond the six thousandth, as those of English do (Ferrer i Cancho and Sole,
"Two regimes in the frequency of words", 2001): 2 GB hold about a million words. A percent of the documents stands there
twice. For comparison `tokenizers` encodes some of the same text by itself, on one thread. Rates a core are megabytes of
text for each second of processor time, so that other work on the machine matters little. The folder needs room for
three times the text; all of it is removed at the end.

    python benchmarks/preparation.py FOLDER [--megabytes 2000] [--workers 2] [--keep]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# The tokenizer that is timed by itself gets one thread.
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from lucid.data import Corpus, Sampler, SamplerSettings, load_tokenizer
from lucid.data.spans import find_spans

WORDS = 3_000_000
# Beyond this rank a word of rank r has a probability like 1 / r^2, up to it like 1 / r.
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


def megabytes_of(pid: int, key: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e6


def measured(*arguments: str) -> tuple[float, float, dict[str, float]]:
    """Run `lucid prepare`; return its seconds, those of all its processes, and the peaks of their memory together."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "lucid", "prepare", *arguments])
    peaks = {"Rss": 0.0, "Pss": 0.0}
    while process.poll() is None:
        processes = descendants(process.pid)
        for key in peaks:
            peaks[key] = max(peaks[key], sum(megabytes_of(pid, key) for pid in processes))
        time.sleep(0.5)
    if process.returncode:
        sys.exit("lucid prepare failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, busy, peaks


def report(what: str, megabytes: float, seconds: float, busy: float, peaks: dict[str, float]) -> None:
    print(
        f"{what}: {seconds:.0f} s, {megabytes / seconds:.1f} MB/s; {busy:.0f} s of processor time, "
        f"{megabytes / busy:.2f} MB/s a core; peak of all processes {peaks['Rss']:.0f} MB resident, "
        f"{peaks['Pss']:.0f} MB with shared pages counted once"
    )


def tokenizers_alone(tokenizer: Path, text: Path) -> float:
    """Return MB/s for encoding the first documents of a file by `tokenizers`, on one thread."""
    encoder, size = load_tokenizer(tokenizer), 0
    started = time.thread_time()
    with text.open() as file:
        for line, _ in zip(file, range(2000), strict=False):
            sentences = json.loads(line)["text"].split(". ")
            size += len(line)
            for encoding in encoder.encode_batch_fast(sentences, add_special_tokens=False):
                assert encoding.ids
    return size / (time.thread_time() - started) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", action="store_true", help="do not remove the text and the corpora")
    arguments = parser.parse_args()
    folder = arguments.folder / "benchmark-preparation"
    text, first, second = folder / "text", folder / "first", folder / "second"
    if not text.exists():
        generate(text, arguments.megabytes)
    megabytes = sum(path.stat().st_size for path in text.iterdir()) / 1e6
    print(f"{megabytes:.0f} MB of text in {FILES} files, {arguments.workers} workers, load {os.getloadavg()[0]:.1f}")
    try:
        options = ("--workers", str(arguments.workers))
        report("with training a tokenizer", megabytes, *measured(str(text), "-o", str(first), *options, "--overwrite"))
        options += ("--tokenizer", str(first / "tokenizer"), "--drop-duplicates", "--overwrite")
        report("with one given", megabytes, *measured(str(text), "-o", str(second), *options))
        print(f"tokenizers alone: {tokenizers_alone(first / 'tokenizer', text / '0.jsonl'):.2f} MB/s a core")
        started = time.perf_counter()
        corpus = Corpus.open(second)
        opened = time.perf_counter()
        spans = find_spans(corpus, 125)
        print(f"opening it takes {opened - started:.2f} s, finding {len(spans) - 1:,} spans", end=" ")
        print(f"{time.perf_counter() - opened:.2f} s")
        sampler = Sampler(corpus, SamplerSettings(128), 0)
        started = time.thread_time()
        for step in range(20):
            sampler.batch(step * 256, range(256))
        print(f"a thread makes {20 * 256 / (time.thread_time() - started):,.0f} sequences a second")
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
