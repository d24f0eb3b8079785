"""lucid launch --hostfile: runs over two hosts, and messages about unusable hosts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import LINK
from launching import FEW_CORES

REPOSITORY = Path(__file__).parents[2]
SECONDS = 120
STEPS = 10


@pytest.fixture(autouse=True)
def reference_kernels(monkeypatch):
    """These tests do not depend on kernels, and the reference kernels load fast."""
    monkeypatch.setenv("LUCID_KERNELS", "reference")


@pytest.fixture
def launch(hosts, run_file, tmp_path):
    """A function that runs the script on the near host with a hostfile of `names`, and returns the finished process."""

    def run(names, *arguments, **environment):
        (tmp_path / "hosts").write_text("".join(f"{name}\n" for name in names))
        variables = {"PYTHON": sys.executable, "PYTHONPATH": str(REPOSITORY), "UCX_NET_DEVICES": LINK}
        return subprocess.run(
            hosts.on_near(
                *(REPOSITORY / "launch" / "mpirun.sh", "--hostfile", tmp_path / "hosts"),
                *(*arguments, run_file, f"train.steps={STEPS}"),
            ),
            env=os.environ | FEW_CORES | variables | {"HYDRA_LAUNCHER_EXEC": str(hosts.enter)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=SECONDS,
        )

    return run


def test_a_run_on_both_hosts_sends_its_gradients_over_the_link(hosts, launch, train, losses, tmp_path):
    finished = launch(["# both on one link", "near  # has the first rank", "", "far"], "-n", "2")
    assert finished.returncode == 0, finished.stdout
    assert f"finished at step {STEPS} of {STEPS}" in finished.stdout
    assert hosts.bytes_sent() > STEPS * 4 * 9034
    assert losses(tmp_path / "run") == train(2, "on_one_host", f"train.steps={STEPS}")


def test_an_unknown_host_is_named_before_anything_is_started(launch, tmp_path):
    finished = launch(["near", "nowhere.invalid"], "-n", "2")
    assert finished.returncode == 1
    assert finished.stdout.startswith("lucid launch: nowhere.invalid cannot be reached (")
    if shutil.which("ssh"):
        assert "Could not resolve hostname" in finished.stdout
        assert finished.stdout.endswith("is the name in the hostfile right?\n")
    assert not (tmp_path / "run").exists()


def test_a_host_without_an_ssh_server_is_named(launch, tmp_path):
    if not shutil.which("ssh"):
        pytest.skip("there is no ssh: apt-get install openssh-client")
    finished = launch(["near", "far"], "-n", "2", HYDRA_LAUNCHER_EXEC="")
    assert finished.returncode == 1
    assert "far cannot be reached (ssh: connect to host far port 22: Connection refused)" in finished.stdout
    assert not (tmp_path / "run").exists()


def test_a_host_that_asks_for_a_password_is_named(launch, tmp_path):
    locked = tmp_path / "locked"
    locked.write_text("#!/bin/sh\necho 'me@far: Permission denied (publickey,password).' >&2\nexit 255\n")
    locked.chmod(0o755)
    finished = launch(["near", "far"], "-n", "2", HYDRA_LAUNCHER_EXEC=str(locked))
    assert finished.returncode == 1
    assert "far cannot be reached (me@far: Permission denied" in finished.stdout
    assert "`ssh-copy-id far` lets it" in finished.stdout


def test_a_hostfile_with_a_mistake_is_refused_with_its_line(launch):
    finished = launch(["near", "far slots=2"], "-n", "2")
    assert finished.returncode == 2
    assert "line 2 of the hostfile" in finished.stdout
    assert "is 'far slots=2', which is not the name of a host" in finished.stdout
