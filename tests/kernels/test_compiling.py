"""Kernels are compiled once, by one of the processes that want them, and kept where something can be kept."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lucid
from lucid.kernels.cache import locked

# One kernel is enough here, and compiled sooner than all.
PROGRAM = """
import numpy as np
from lucid.kernels.cpu import compiling, linear_bias_gradient
from lucid.kernels.targets import Target

[(dispatcher, signature)] = [declared for declared in compiling._declared if "column_sums" in repr(declared[0])]
compiling._declared[:] = [(dispatcher, signature)]
compiling.load()
sums = np.empty(2, np.float32)
linear_bias_gradient(np.ones((3, 2), np.float32), Target(sums, False))
assert sums.tolist() == [3, 3]
"""
SOURCES = Path(lucid.__file__).parent


@pytest.fixture(scope="module")
def start():
    """A function that starts the program in a process with these variables; no folder of the user is touched."""

    def run(sources=SOURCES, **environment):
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stderr=subprocess.PIPE,
            text=True,
            cwd=sources.parent,
            env=os.environ | environment,
        )

    return run


@pytest.fixture(scope="module")
def compiled(start, tmp_path_factory):
    """A folder in which three processes wanted the kernel at once, and what they said."""
    folder = tmp_path_factory.mktemp("compiled")
    return folder, messages(*(start(NUMBA_CACHE_DIR=str(folder)) for _ in range(3)))


@pytest.fixture
def cache(compiled, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(compiled[0], tmp_path / "cache")


def messages(*processes):
    """Return what the processes wrote to their stderr, when all have ended in order."""
    found = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), found
    return found


def test_of_several_processes_one_compiles_and_says_so_and_the_others_find_its_work(start, compiled, cache):
    folder, written = compiled
    said = [text for text in written if text]
    assert len(said) == 1
    assert said[0].startswith(f"lucid: compiling kernels, once per machine ({folder}")
    assert messages(start(NUMBA_CACHE_DIR=str(cache))) == [""]


def test_processes_that_find_all_kernels_load_them_at_once(start, tmp_path):
    messages(start(NUMBA_CACHE_DIR=str(tmp_path)))
    (folder,) = tmp_path.glob("kernels-*")
    with locked(folder, shared=True):  # as by another that is loading
        assert messages(start(NUMBA_CACHE_DIR=str(tmp_path))) == [""]


def test_where_the_home_cannot_be_written_kernels_are_kept_beside_their_sources(start, tmp_path):
    sources = shutil.copytree(SOURCES, tmp_path / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    beside = sources / "kernels/cpu/__pycache__"
    [said] = messages(start(sources, XDG_CACHE_HOME="/dev/null"))
    assert said.startswith(f"lucid: compiling kernels, once per machine ({beside}")
    assert messages(start(sources, XDG_CACHE_HOME="/dev/null")) == [""]


def test_where_nothing_can_be_written_kernels_are_compiled_for_the_process(start, tmp_path):
    sources = shutil.copytree(SOURCES, tmp_path / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "kernels/cpu/__pycache__").touch()
    [said] = messages(start(sources, XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="/dev/null"))
    assert said.startswith("lucid: compiling kernels, for this process alone")


def test_a_change_of_any_source_compiles_anew(start, tmp_path):
    sources = shutil.copytree(SOURCES, tmp_path / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    assert "compiling" in messages(start(sources, NUMBA_CACHE_DIR=cache))[0]
    with (sources / "kernels/cpu/mathematics.py").open("a") as file:
        file.write("# one more line\n")
    assert "compiling" in messages(start(sources, NUMBA_CACHE_DIR=cache))[0]


def test_a_damaged_file_is_an_error_that_says_what_to_do(start, cache):
    for kept in cache.rglob("*.nbc"):
        kept.write_bytes(kept.read_bytes()[:-100])
    process = start(NUMBA_CACHE_DIR=str(cache))
    written = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert f"ConfigError: the compiled kernels in {cache}" in written
    assert "delete it" in written


def test_a_lock_that_cannot_be_taken_keeps_nobody_out(tmp_path):
    (tmp_path / "lock").mkdir()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
