"""Ranks that run different versions find that out when they join, and end with one sentence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lucid

SECONDS = 30

# A rank whose number is WHO pretends to have another version, as WHAT says, and then all join.
PROGRAM = """
import os, platform, sys
import numpy
from lucid.distributed import session, software
from lucid.errors import LucidError

if os.environ["PMI_RANK"] == "{who}":
    {what}
try:
    with session():
        sys.stdout.write("joined\\n")
except LucidError as error:
    assert error.told and error.agreed
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("numpy.__version__ = '1.0'", "runs NumPy 1.0, but rank 0 on"),
        ("platform.python_version = lambda: '3.99'", "runs Python 3.99, but rank 0 on"),
        ("software.__version__ = '9'", "runs lucid 9, but rank 0 on"),
    ],
)
@pytest.mark.parametrize("who", [1, 2])
def test_a_rank_with_another_version_is_named_and_none_goes_on(run_ranks, who, what, other):
    finished = run_ranks(3, "-m", "mpi4py", "-c", PROGRAM.format(who=who, what=what), seconds=SECONDS)
    assert finished.returncode == 2, finished.stdout
    assert finished.stdout.count(f"rank {who} on ") == 1
    assert other in finished.stdout
    assert "install the same on all hosts" in finished.stdout
    assert "joined" not in finished.stdout
    assert "Abort" not in finished.stdout


def test_ranks_with_one_version_join(run_ranks):
    finished = run_ranks(3, "-m", "mpi4py", "-c", PROGRAM.format(who=1, what="pass"), seconds=SECONDS)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("joined") == 3


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
    assert ("lucid 99" in sentence) == (change == "version")
    assert "sources of lucid " in sentence
    assert "Traceback" not in finished.stderr
