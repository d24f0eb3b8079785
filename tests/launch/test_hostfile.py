"""Hostfiles: reading them, and asking which hosts can be used. test_two_hosts.py has whole runs."""

import os
import socket
import sys
import threading

import pytest

from lucid.errors import LaunchError
from lucid.launch import hostfile

# Replaces ssh, which passes the words after the name to a shell. 198.51.100.0/24 is reserved for documentation: no
# machine has such an address.
SSH = """#!/bin/sh
host=$1
shift
case $host in
    198.51.100.2) echo "it starts" >&2; echo "{said}" >&2; exit 255 ;;
    198.51.100.3) cd / && PATH= exec /bin/sh -c "exit 127" ;;
    198.51.100.4) exec sleep 60 ;;
    *) exec sh -c "$*" ;;
esac
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A function that replaces ssh by a script, which prints `said` for one host."""

    def put(said="") -> None:
        launcher = tmp_path / "launcher"
        launcher.write_text(SSH.format(said=said))
        launcher.chmod(0o755)
        monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", str(launcher))

    return put


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "hosts"
        path.write_text(text)
        return path

    return write


def test_comments_and_empty_lines_name_no_hosts(write):
    named = hostfile.read(write("# ours\n\nnode1\n  node-2.cluster  # slow\n10.0.0.3\n"))
    assert list(named) == ["node1", "node-2.cluster", "10.0.0.3"]


def test_a_host_is_named_as_often_as_it_has_room_for_ranks(write):
    assert hostfile.read(write("b\na\nb\nb\n")) == {"b": 3, "a": 1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "names no host"),
        ("# nobody\n", "names no host"),
        ("node1\nnode2 slots=4\n", r"line 2 of .* is 'node2 slots=4', which is not the name of a host"),
        ("node1:4\n", "line 1 of .* is 'node1:4'"),
        ("node1,node2\n", "line 1 of .* is 'node1,node2'"),
        ("-oProxyCommand=sh\n", "line 1 of .* is '-oProxyCommand=sh'"),
        ("node1\nnode1 slots=4\n", r"line 2 of .* is 'node1 slots=4', which is not the name of a host"),
        ("node\x00\n", r"line 1 of .* is 'node\\x00'"),
    ],
)
def test_a_line_without_a_valid_name_is_refused_with_its_number(write, text, sentence):
    with pytest.raises(LaunchError, match=sentence):
        hostfile.read(write(text))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", socket.gethostname()])
def test_this_machine_is_not_asked(host, monkeypatch):
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", "/bin/false")
    assert hostfile.unusable([host]) == {}


def test_every_other_host_is_asked_whether_python_runs_in_this_folder(ssh, monkeypatch, tmp_path):
    ssh()
    folder = tmp_path / "a b"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert hostfile.unusable(["198.51.100.1"], sys.executable) == {}
    missing = hostfile.unusable(["198.51.100.1"], "/nowhere/python")["198.51.100.1"]
    assert missing.startswith(f"198.51.100.1 cannot run /nowhere/python in {folder} (")
    assert missing.endswith("): all hosts need the same files in the same places")
    assert os.getcwd() == str(folder)
    assert "(exit code 127)" in hostfile.unusable(["198.51.100.3"])["198.51.100.3"]


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ssh: Could not resolve hostname x: Name or service not known", "is the name in the hostfile right?"),
        ("u@x: Permission denied (publickey,password).", "`ssh-copy-id 198.51.100.2` lets it"),
        ("Host key verification failed.", "`ssh 198.51.100.2` has to work without a question"),
        ("ssh: connect to host x port 22: No route to host", "`ssh 198.51.100.2 true` has to work"),
    ],
)
def test_a_host_that_refuses_the_login_is_named_with_the_message_of_ssh_and_advice(ssh, said, advice):
    ssh(said)
    sentence = hostfile.unusable(["198.51.100.1", "198.51.100.2"])["198.51.100.2"]
    assert sentence.startswith(f"198.51.100.2 cannot be reached ({said})")
    assert advice in sentence
    assert "it starts" not in sentence


def test_a_host_that_does_not_answer_in_time_is_unusable(ssh, monkeypatch):
    ssh()
    monkeypatch.setattr(hostfile, "SECONDS_TO_ANSWER", 0.1)
    assert hostfile.unusable(["198.51.100.4"])["198.51.100.4"].startswith("198.51.100.4 did not answer within 0.1 s")


def test_names_are_looked_up_at_the_same_time_and_hosts_asked_meanwhile(ssh, monkeypatch):
    ssh()
    hosts, address = [f"node{number}" for number in range(64)], "198.51.100.1"
    all_at_once, never = threading.Barrier(len(hosts)), threading.Event()

    def look_up(host):  # as if no name server answered: only addresses need none
        if host in hosts:
            all_at_once.wait()
            never.wait()
        return False

    monkeypatch.setattr(hostfile, "_is_this_machine", look_up)
    monkeypatch.setattr(hostfile, "SECONDS_TO_ANSWER", 2.0)
    found = hostfile.unusable([*hosts, address])
    never.set()
    assert not all_at_once.broken
    assert list(found) == hosts
    assert found["node7"].startswith("node7 could not be looked up within 2 s: do the name servers (DNS)")


def test_a_machine_without_ssh_says_so(monkeypatch):
    monkeypatch.setenv("HYDRA_LAUNCHER_EXEC", "/nowhere/ssh")
    assert "there is no /nowhere/ssh on this machine" in hostfile.unusable(["198.51.100.1"])["198.51.100.1"]
