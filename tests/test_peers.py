"""The comparison with PyTorch and JAX runs, and finds the same losses on all sides."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "benchmarks" / "peers" / "run.py"


def compare(*options: str) -> dict[str, float]:
    """Return by how much the losses of each side differ from the first side's, relative."""
    command = [sys.executable, str(RUN), "--quick", "--turns", "1", "--steps", "1", *options]
    environment = os.environ | {"PYTHONPATH": str(RUN.parents[2])}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert finished.returncode == 0, finished.stderr
    lines = re.findall(r"^\| ((?:lucid|torch|jax), .*?) \|.* (\S+) \|$", finished.stdout, re.MULTILINE)
    return {name: float(difference) for name, difference in lines}


@pytest.fixture(autouse=True)
def _two_cores() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("the comparison is made on two cores")


def test_ranks_and_threads_are_timed_on_the_same_losses():
    differences = compare("--only", "lucid, float32")
    assert differences.keys() == {"lucid, float32, 2 x 1", "lucid, float32, 1 x 2"}
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize(
    ("side", "packages"),
    [("torch, float32, 2 x 1", ["torch", "transformers"]), ("jax, float32, 1 x 2", ["jax"])],
    ids=["torch", "jax"],
)
def test_a_peer_that_is_installed_trains_on_the_same_losses(side, packages):
    for package in packages:
        pytest.importorskip(package)
    assert compare("--only", side)[side] < 1e-5
