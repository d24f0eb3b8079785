"""All processes of a preparation together take a bounded amount of memory, whatever the size of the corpus."""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from launching import FEW_CORES, descendants

from lucid.data.tokenizer import save_tokenizer
from lucid.preparation.inputs.documents import scan
from lucid.preparation.inputs.sources import find_sources
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

PROCESSES = 3
SECONDS_BETWEEN_LOOKS = 0.1
MEBIBYTE = 1 << 20

PROGRAM = """
import sys
from pathlib import Path
from lucid.preparation import stages

stages.PIECE_BYTES, stages._WORD_BYTES_OF_HOST = 1 << 16, 1 << 24
text, tokenizer, output = sys.argv[1:]
stages.prepare([text], Path(output), tokenizer=Path(tokenizer), processes={processes})
"""


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of hexadecimal numbers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained = train_tokenizer(lambda: ["0123456789abcdef fedcba9876543210"], VocabularySettings(100))
    save_tokenizer(trained.tokenizer, folder)
    return folder


def write_numbers(path: Path, count: int) -> None:
    """Write text without a repeated word."""
    lines = (" ".join(f"{number:x}" for number in range(start, start + 50)) for start in range(0, count, 50))
    path.write_text("\n\n".join(lines))


def shared_fairly(pid: int) -> int:
    """Return the bytes of a process's memory, with its fraction of the pages that several processes share."""
    with suppress(OSError):  # it has ended meanwhile
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
    return 0


def peak_of_all(text: Path, tokenizer: Path) -> int:
    """Prepare a corpus; return the most bytes that all its processes took in one of many samples."""
    program = PROGRAM.format(processes=PROCESSES)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(text), str(tokenizer), str(text.with_suffix(""))],
        env=os.environ | FEW_CORES,
    )
    peak, code = 0, None
    while code is None:
        peak = max(peak, sum(map(shared_fairly, [process.pid, *descendants(process.pid)])))
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=SECONDS_BETWEEN_LOOKS)
    assert code == 0
    return peak


def test_a_larger_corpus_takes_no_more_memory(tokenizer_folder: Path, tmp_path: Path) -> None:
    write_numbers(tmp_path / "small.txt", 100_000)
    write_numbers(tmp_path / "large.txt", 350_000)
    small = peak_of_all(tmp_path / "small.txt", tokenizer_folder)
    large = peak_of_all(tmp_path / "large.txt", tokenizer_folder)
    # All words of the large corpus would take some 40 MiB more. All processes together may remember 16 MiB.
    assert large < small + 30 * MEBIBYTE
    assert large < 512 * MEBIBYTE


@pytest.mark.parametrize("step", [1, 7, 100])
def test_cuts_do_not_depend_on_the_size_of_reads(step: int, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((source,), _) = find_sources([text_file])
    expected = scan(source, 5000, whole_files=False)
    monkeypatch.setattr("lucid.preparation.inputs.pieces._SCANNED_AT_ONCE", step)
    assert scan(source, 5000, whole_files=False) == expected
    assert len(expected.cuts) > 3
