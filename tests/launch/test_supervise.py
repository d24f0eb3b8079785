"""launch/supervise.py: which hosts answer. What it does with a run is in tests/faults/test_restarts.py."""

import socket

import pytest
import supervise


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", socket.gethostname()])
def test_this_machine_is_known_and_not_asked(host, monkeypatch):
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", "/bin/false")
    assert supervise._answering([host]) == (host,)


# 198.51.100.0/24 is set aside for documentation: no machine has such an address.
def test_other_hosts_are_asked_through_the_launcher_of_mpiexec(tmp_path, monkeypatch):
    launcher = tmp_path / "launcher"
    launcher.write_text('#!/bin/sh\ntest "$1" = 198.51.100.2 && exit 255\nshift\nexec "$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", str(launcher))
    hosts = ["198.51.100.1", "198.51.100.2", "198.51.100.3"]
    assert supervise._answering(hosts) == ("198.51.100.1", "198.51.100.3")


def test_a_host_that_says_nothing_in_time_does_not_answer(tmp_path, monkeypatch):
    launcher = tmp_path / "launcher"
    launcher.write_text("#!/bin/sh\nexec sleep 60\n")
    launcher.chmod(0o755)
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", str(launcher))
    monkeypatch.setattr(supervise, "SECONDS_TO_ANSWER", 0.1)
    assert supervise._answering(["198.51.100.1", "198.51.100.2"]) == ()
