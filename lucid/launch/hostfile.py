"""Hostfiles: the names of hosts, and which hosts a run can be started on.

`mpirun` asks hosts before a start, and `supervise` before a restart. They are reached in the way of mpiexec.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lucid.errors import LaunchError
from lucid.files import open_text, reason_of

SECONDS_TO_ANSWER = 10.0
# Time for the processes that ask to be killed.
_SECONDS_TO_END = 1.0
# The exit code of ssh when it fails itself, and not the command that it runs.
_NOT_REACHED = 255
# Characters: names of ten thousand hosts have fewer.
_LONGEST = 1 << 22
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def read(path: Path) -> Mapping[str, int]:
    """Return how many lines of the hostfile `path` name each host. Raises `LaunchError`, which names the wrong line.

    PBS and LSF write a line for each rank that a host has room for.
    """
    try:
        with open_text(path, errors="replace") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise LaunchError(f"the hostfile '{path}' cannot be read: {reason_of(error)}") from error
    if len(text) > _LONGEST:
        raise LaunchError(f"the hostfile '{path}' is longer than {_LONGEST:,} characters: is it another file?")
    names: Counter[str] = Counter()
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.partition("#")[0].strip()
        if not name:
            continue
        if not _NAME.fullmatch(name):
            raise LaunchError(
                f"line {number} of the hostfile '{path}' is {name!r}, which is not the name of a host: write one "
                "name a line and nothing else; how many ranks a host gets follows from -n"
            )
        names[name] += 1
    if not names:
        raise LaunchError(f"the hostfile '{path}' names no host")
    return names


def unusable(hosts: Sequence[str], python: str = sys.executable) -> dict[str, str]:
    """Return a sentence for each of `hosts` on which `python` cannot be started in this folder.

    All hosts but this machine are asked. Their names are looked up and they are asked at the same time, for
    `SECONDS_TO_ANSWER` in all. A host that asks for a password is unusable.
    """
    deadline = time.monotonic() + SECONDS_TO_ANSWER
    silent = f"could not be looked up within {SECONDS_TO_ANSWER:g} s: do the name servers (DNS) of this machine answer?"
    answers = {host: f"{host} {silent}" for host in hosts}

    def ask(host: str) -> None:
        answers[host] = "" if _is_this_machine(host) else _ask(host, python, deadline)

    # Nothing can interrupt a look-up: threads that are still in one do not keep this process from ending.
    threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, deadline + _SECONDS_TO_END - time.monotonic()))
    return {host: sentence for host, sentence in list(answers.items()) if sentence}


def _ask(host: str, python: str, deadline: float) -> str:
    """Return what is wrong with the host, or "". Wait until `deadline` (`time.monotonic`)."""
    launcher = os.environ.get("HYDRA_LAUNCHER_EXEC") or "ssh"
    command = f"cd {shlex.quote(os.getcwd())} && exec {shlex.quote(python)} -I -S -c pass"
    try:
        finished = subprocess.run(
            [launcher, host, "sh", "-c", shlex.quote(command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # without a terminal ssh cannot ask for a password
            timeout=max(0, deadline - time.monotonic()),
            check=False,
        )
    except OSError:
        return f"{host} cannot be reached: there is no {launcher} on this machine (openssh-client)"
    except subprocess.TimeoutExpired:
        return f"{host} did not answer within {SECONDS_TO_ANSWER:g} s: is it up, and in the same network?"
    code, said = finished.returncode, finished.stderr.decode(errors="replace").strip().rpartition("\n")[2].strip()
    if code == 0:
        return ""
    if code != _NOT_REACHED:
        return (
            f"{host} cannot run {python} in {os.getcwd()} ({said or f'exit code {code}'}): all hosts need the same "
            "files in the same places"
        )
    return f"{host} cannot be reached ({said or 'without a word'}): {_advice(said, host)}"


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
