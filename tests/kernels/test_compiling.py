"""One of the processes that need a kernel compiles it, and stores it if a folder is writable."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import lucid
from lucid.kernels.cache import compiling_message, locked

# One kernel suffices here, and compiles faster than all.
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
    """A function that starts the program with these environment variables, away from the user's folders."""

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
    """A folder in which three processes needed the kernel at once, and their messages."""
    folder = tmp_path_factory.mktemp("compiled")
    return folder, messages(*(start(NUMBA_CACHE_DIR=str(folder)) for _ in range(3)))


@pytest.fixture
def cache(compiled, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(compiled[0], tmp_path / "cache")


def messages(*processes):
    """Return the standard error of the processes, after all have succeeded."""
    found = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), found
    return found


def test_one_of_several_processes_announces_and_compiles_and_the_others_load_the_result(start, compiled, cache):
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


def test_kernels_are_stored_next_to_their_sources_if_the_home_is_not_writable(start, tmp_path):
    sources = shutil.copytree(SOURCES, tmp_path / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    beside = sources / "kernels/cpu/__pycache__"
    [said] = messages(start(sources, XDG_CACHE_HOME="/dev/null"))
    assert said.startswith(f"lucid: compiling kernels, once per machine ({beside}")
    assert messages(start(sources, XDG_CACHE_HOME="/dev/null")) == [""]


def test_kernels_are_compiled_for_the_process_if_no_folder_is_writable(start, tmp_path):
    sources = shutil.copytree(SOURCES, tmp_path / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "kernels/cpu/__pycache__").touch()
    [said] = messages(start(sources, XDG_CACHE_HOME="/dev/null", NUMBA_CACHE_DIR="/dev/null"))
    assert said.startswith("lucid: compiling kernels, for this process alone")


def test_a_change_of_any_source_leads_to_a_new_compilation(start, tmp_path):
    sources = shutil.copytree(SOURCES, tmp_path / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    cache = str(tmp_path / "cache")
    assert "compiling" in messages(start(sources, NUMBA_CACHE_DIR=cache))[0]
    with (sources / "kernels/cpu/mathematics.py").open("a") as file:
        file.write("# one more line\n")
    assert "compiling" in messages(start(sources, NUMBA_CACHE_DIR=cache))[0]


def test_a_damaged_file_is_an_error_with_advice(start, cache):
    for kept in cache.rglob("*.nbc"):
        kept.write_bytes(kept.read_bytes()[:-100])
    process = start(NUMBA_CACHE_DIR=str(cache))
    written = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert f"ConfigError: the compiled kernels in {cache}" in written
    assert "delete it" in written


def test_without_a_lock_processes_still_proceed(tmp_path):
    (tmp_path / "lock").mkdir()
    with locked(tmp_path) as is_locked:
        assert not is_locked
        assert "by each process at once, as the file system has no locks" in compiling_message(tmp_path, is_locked)
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.long
def test_on_a_full_disk_kernels_are_loaded_if_they_are_there_and_otherwise_compiled_for_each_process(
    start, cache, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        (disk / "empty").mkdir()
        shutil.copytree(cache, disk / "cache")
        with open(disk / "filling", "ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        assert messages(start(NUMBA_CACHE_DIR=str(disk / "cache"))) == [""]
        [said] = messages(start(NUMBA_CACHE_DIR=str(disk / "empty")))
        assert said.startswith(f"lucid: compiling kernels, for this process alone: the disk of {disk}/empty/kernels-")
        assert said.count("\n") == 1
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
