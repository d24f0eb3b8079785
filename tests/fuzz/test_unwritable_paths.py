"""Where nothing can be written, a command says so in a sentence that names the path, and harms nothing."""

import os
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from broken import NOT_PERMITTED, break_path, tree
from forks import ForkServer

NEW = "out/new"
CHECKPOINT = "run/checkpoints/0001-00000002"
WRITING = {
    "prepare": ("prepare", "books", "-o", NEW, "--vocab-size", "200", "--processes", "1"),
    "extend": ("extend", "run", "books", "-o", NEW, "--tokens", "5", "--at-least", "1", "--processes", "1"),
    "train": ("train", "run.yaml", f"run_folder={NEW}"),
    "export": ("export", "run", NEW),
    "average": ("average", CHECKPOINT, CHECKPOINT, NEW),
    "embed": ("embed", "run", "books/a.txt", "-o", "out/vectors.npy"),
    "plot": ("plot", "run", "-o", "out/loss.png"),
    "report": ("report", "run", "-o", "out/report.html"),
    "recipes": ("recipes", "--slurm", NEW),
    "doctor": ("doctor", "--folder", NEW),
}


@dataclass(frozen=True)
class Place:
    """A place in which nothing can be written: what is wrong with which path, and fields of `Command`."""

    faults: dict[str, str] = field(default_factory=dict)
    surroundings: dict[str, Any] = field(default_factory=dict)


PLACES = {
    "below a file": Place({"out": "an empty file"}),
    "below a dangling link": Place({"out": "a dangling link"}),
    "below a link to itself": Place({"out": "a link to itself"}),
    "in a folder of others": Place({"out": NOT_PERMITTED}, {"obeys_permissions": True}),
    "on a read-only file system": Place({}, {"read_only": ["out"]}),
    "on a full disk": Place({}, {"small": {"out": os.sysconf("SC_PAGE_SIZE")}}),
    "over a file": Place({NEW: "an empty file"}),
    "over a fifo": Place({NEW: "a fifo"}),
    "over a socket": Place({NEW: "a socket"}),
    "over a dangling link": Place({NEW: "a dangling link"}),
    "over a link to itself": Place({NEW: "a link to itself"}),
}

CASES = [
    pytest.param(arguments, place, id=f"{command} {name}")
    for command, arguments in WRITING.items()
    for name, place in PLACES.items()
    if command not in ("embed", "plot", "report") or NEW not in place.faults
]


@cache
def own_file_systems_are_permitted() -> bool:
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0


def refusal(forks: ForkServer, folder: Path, arguments: tuple[str, ...], place: Place) -> str:
    """Return the sentence with which a command refuses to write in a place. It must be the only one."""
    if place.surroundings.keys() & {"read_only", "small"} and not own_file_systems_are_permitted():
        pytest.skip("file systems of one's own are not permitted here")
    (folder / "out").mkdir()
    for path, fault in place.faults.items():
        break_path(folder / path, fault)
    before = tree(folder)
    result = forks.run(*arguments, folder=folder, **place.surroundings)
    assert not result.timed_out, result
    assert not result.left_processes, result
    assert result.code in (1, 2), result
    assert tree(folder) == before
    lines = result.errors.splitlines()
    if arguments[0] == "doctor":  # it prints what it finds, and goes on
        lines += [line for line in result.output.splitlines() if line.startswith("error ")]
    assert len(lines) == 1, result
    return lines[0]


@pytest.mark.long
@pytest.mark.parametrize(("arguments", "place"), CASES)
def test_where_nothing_can_be_written_a_command_says_so(
    forks: ForkServer, folder: Path, arguments: tuple[str, ...], place: Place
) -> None:
    assert "out" in refusal(forks, folder, arguments, place)
