"""Ranks that run different versions notice it when they join, and end with one sentence."""

import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import pytest

import lucid
from lucid.distributed import announced, session
from lucid.errors import LucidError

SECONDS = 30


def join_as_another(who: int, name: str, value: object) -> tuple[int, bool, bool]:
    """Join on all ranks; on rank `who`, `name` is replaced by `value`.

    Return the exit code, whether all ranks know of it, and whether the user does.
    """
    here = announced().rank == who
    with mock.patch(name, value) if here else nullcontext():
        try:
            with session():
                print("joined")
        except LucidError as error:
            return error.exit_code, error.agreed, error.reported
    return 0, True, False


def version_of_the_future() -> str:
    return "3.99"


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("numpy.__version__", "1.0", "runs NumPy 1.0, but rank 0 on"),
        ("platform.python_version", version_of_the_future, "runs Python 3.99, but rank 0 on"),
        ("lucid.distributed.health.software.__version__", "9", "runs lucid 9, but rank 0 on"),
    ],
)
@pytest.mark.parametrize("who", [1, 2])
def test_a_rank_with_another_version_is_named_and_all_end(rank_pool, who, name, value, other):
    results = rank_pool.run(3, join_as_another, who, name, value)
    output = "".join(result.output for result in results)
    assert [result.value for result in results] == [(2, True, True)] * 3
    assert output.count(f"rank {who} on ") == 1
    assert other in output
    assert "install the same on all hosts" in output
    assert "joined" not in output


def old_numpy_on_rank_1():
    return mock.patch("numpy.__version__", "1.0") if announced().rank == 1 else nullcontext()


def test_mpiexec_exits_with_the_code_of_a_refusal(run_within):
    finished = run_within(2, old_numpy_on_rank_1, "train", "run.yaml", seconds=SECONDS)
    assert finished.returncode == 2, finished.stdout
    assert finished.stdout.count("runs NumPy 1.0, but rank 0 on") == 1
    assert "Abort" not in finished.stdout


def test_ranks_with_one_version_join(rank_pool):
    results = rank_pool.run(3, join_as_another, 9, "", None)
    assert [(result.value, result.output) for result in results] == [((0, True, False), "joined\n")] * 3


@pytest.mark.parametrize("change", ["version", "comment"])
def test_another_lucid_on_the_other_host_is_refused(hosts, mpiexec, tmp_path, change):
    here = Path(lucid.__file__).parent
    far = tmp_path / "far"
    shutil.copytree(here, far / "lucid", ignore=shutil.ignore_patterns("__pycache__"))
    version = far / "lucid" / "version.py"
    text = version.read_text()
    version.write_text(text.replace(lucid.__version__, "99") if change == "version" else f"{text}# mended\n")
    run = [sys.executable, "-m", "mpi4py", "-m", "lucid", "train", "run.yaml"]
    command = hosts.mpiexec(mpiexec, 1)
    each = [["-n", "1", "env", f"PYTHONPATH={folder}", "UCX_NET_DEVICES=link0", *run] for folder in (here.parent, far)]
    finished = subprocess.run(
        [*command[:-2], *each[0], ":", *each[1]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert finished.returncode == 2, finished.stderr
    (sentence,) = [line for line in finished.stderr.splitlines() if "install the same on all hosts" in line]
    assert sentence.startswith("lucid: rank 1 on far runs ")
    # The message also has the digest of the sources, which may begin with 99.
    assert bool(re.search(r"lucid 99\b", sentence)) == (change == "version")
    assert "sources of lucid " in sentence
    assert "Traceback" not in finished.stderr
