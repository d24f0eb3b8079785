"""Hostfiles: the names of hosts, and which hosts a run can be started on.

`mpirun` asks hosts before a start, and `supervise` before a restart. They are reached in the way of mpiexec.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lucid.errors import LaunchError
from lucid.files import open_text, reason_of

SECONDS_TO_ANSWER = 10.0
# The exit code of ssh when it fails itself, and not the command that it runs.
_NOT_REACHED = 255
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read(path: Path) -> tuple[str, ...]:
    """Return the names in the hostfile `path`, one a line. Raises `LaunchError`, which names the wrong line."""
    try:
        with open_text(path, errors="replace") as file:
            text = file.read()
    except OSError as error:
        raise LaunchError(f"the hostfile '{path}' cannot be read: {reason_of(error)}") from error
    names: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        if not _NAME.fullmatch(name):
            raise LaunchError(
                f"line {number} of the hostfile '{path}' is {name!r}, which is not the name of a host: write one "
                "name a line and nothing else; how many ranks a host gets follows from -n"
            )
        if name in names:
            raise LaunchError(f"the hostfile '{path}' names {name} twice, the second time in line {number}")
        names.append(name)
    if not names:
        raise LaunchError(f"the hostfile '{path}' names no host")
    return tuple(names)


def unusable(hosts: Sequence[str], python: str = sys.executable) -> dict[str, str]:
    """Return a sentence for each of `hosts` on which `python` cannot be started in this folder.

    All hosts but this machine are asked at the same time. A host that asks for a password is unusable.
    """
    questions = {host: _Question(host, python) for host in hosts if not _is_this_machine(host)}
    deadline = time.monotonic() + SECONDS_TO_ANSWER
    answers = {host: question.answer(deadline) for host, question in questions.items()}
    return {host: sentence for host, sentence in answers.items() if sentence}


class _Question:
    """A process that asks one host."""

    def __init__(self, host: str, python: str) -> None:
        self._host, self._python = host, python
        self._launcher = os.environ.get("HYDRA_LAUNCHER_EXEC") or "ssh"
        command = f"cd {shlex.quote(os.getcwd())} && exec {shlex.quote(python)} -S -c pass"
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [self._launcher, host, "sh", "-c", shlex.quote(command)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,  # without a terminal ssh cannot ask for a password
            )
        except OSError:
            self._process = None

    def answer(self, deadline: float) -> str:
        """Return what is wrong with the host, or "". Wait until `deadline` (`time.monotonic`)."""
        if self._process is None:
            return f"{self._host} cannot be reached: there is no {self._launcher} on this machine (openssh-client)"
        try:
            _, errors = self._process.communicate(timeout=max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"{self._host} did not answer within {SECONDS_TO_ANSWER:g} s: is it up, and in the same network?"
        code = self._process.returncode
        if code == 0:
            return ""
        said = errors.decode(errors="replace").strip().rpartition("\n")[2].strip()
        if code != _NOT_REACHED:
            return (
                f"{self._host} cannot run {self._python} in {os.getcwd()} ({said or f'exit code {code}'}): all hosts "
                "need the same files in the same places"
            )
        return f"{self._host} cannot be reached ({said or 'without a word'}): {_advice(said, self._host)}"


def _advice(said: str, host: str) -> str:
    if "resolve" in said:
        return "is the name in the hostfile right?"
    if "denied" in said or "verification failed" in said:
        return f"`ssh {host}` has to work without a question; `ssh-copy-id {host}` lets it"
    return f"`ssh {host} true` has to work"


def _is_this_machine(host: str) -> bool:
    """Return whether `host` is a name or an address of this machine: a socket can bind no other."""
    if host in ("localhost", socket.gethostname()):
        return True
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True
