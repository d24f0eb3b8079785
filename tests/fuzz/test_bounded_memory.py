"""Small files that stand for huge things are refused before memory is taken: each is read by a process with little."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import FEW_CORES

# Beyond what Python and NumPy take by themselves, in bytes; less than what the files below stand for.
MEMORY = 200 << 20

PROGRAM = """
import resource, sys
from pathlib import Path
from lucid.preparation import read_documents
from lucid.errors import LucidError
from lucid.models import BERTForPreTraining
from lucid.training.config import load

folder = Path(sys.argv[1])
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {memory}, taken + {memory}))
try:
    {action}
except LucidError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def refused(folder: Path, action: str) -> str:
    program = PROGRAM.format(memory=MEMORY, action=action)
    finished = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=os.environ | FEW_CORES,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert finished.returncode == 2, finished.stderr
    return finished.stdout


def bomb_of_aliases(folder: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 12)]
    (folder / "run.yaml").write_text("\n".join([*lines, "train: *a11"]))


def settings_of_a_terabyte(folder: Path) -> None:
    (folder / "run.yaml").touch()
    os.truncate(folder / "run.yaml", 1 << 40)


def line_of_a_small_archive(folder: Path) -> None:
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b"x" * (1 << 28), compresslevel=1))


def line_longer_than_memory(folder: Path) -> None:
    (folder / "a.txt").touch()
    os.truncate(folder / "a.txt", 1 << 28)


def huge_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"vocab_size": 2_000_000_000, "num_hidden_layers": 10_000}))
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")


READ_ALL = "list(read_documents([folder]))"
LOAD = "load(folder / 'run.yaml')"
FROM_PRETRAINED = "BERTForPreTraining.from_pretrained(folder)"


@pytest.mark.parametrize(
    ("make", "action", "fragment"),
    [
        (bomb_of_aliases, LOAD, "aliases (*name) are not supported"),
        (settings_of_a_terabyte, LOAD, "is longer than 262,144 characters"),
        (line_of_a_small_archive, READ_ALL, "a.jsonl.gz:1: longer than 16 MiB"),
        (line_longer_than_memory, READ_ALL, "a.txt:1: longer than 16 MiB"),
        (huge_model, FROM_PRETRAINED, "holds no weights of a BERT"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_small_file_that_stands_for_a_huge_thing_is_refused(
    tmp_path: Path, make: Callable[[Path], None], action: str, fragment: str
) -> None:
    make(tmp_path)
    assert fragment in refused(tmp_path, action)
