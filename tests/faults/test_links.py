"""A run over two hosts: a short cut of the link between them changes nothing, a long one ends it."""

import os
import subprocess
import sys
import time

import pytest
from hosts import LINK, until
from launching import FEW_CORES, TRAIN

from lucid.errors import ExitCode

pytestmark = pytest.mark.long

SECONDS = 60


@pytest.fixture
def start(hosts, mpiexec, run_file, tmp_path):
    """A function that starts the run on both hosts and returns the process once it has taken ten steps."""

    def begin(*overrides):
        process = subprocess.Popen(
            [
                *hosts.mpiexec(mpiexec, 1),
                sys.executable,
                *TRAIN,
                str(run_file),
                f"run_folder={tmp_path / 'cut'}",
                *overrides,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK},
        )
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("step 10/"):
                return process
        pytest.fail("".join(lines))

    return begin


def test_a_link_that_is_cut_for_three_seconds_changes_nothing(hosts, start, train, losses, tmp_path):
    process = start("train.watchdog_seconds=30")
    hosts.set_link("down")
    time.sleep(3)
    assert max(losses(tmp_path / "cut")) < 50
    hosts.set_link("up")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    assert hosts.bytes_sent() > 50 * 4 * 9034  # the gradients went over the link
    assert losses(tmp_path / "cut") == train(2, "undisturbed")


def test_a_link_that_stays_cut_ends_the_ranks_on_both_sides(hosts, start):
    process = start("train.watchdog_seconds=3")
    hosts.set_link("down")
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == ExitCode.HUNG, output
    assert "rank 1 on far does not answer (stopped, gone, or cut off from this one)" in output
    assert output.count("ranks wait in vain in all_reduce") == 1
    for namespace in hosts.namespaces:
        until(lambda namespace=namespace: not hosts.processes(namespace))
