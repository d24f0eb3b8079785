"""Two hosts on one machine, for tests of what goes over a network: network namespaces, joined by a link.

They need root, and a kernel that permits namespaces.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress

SECONDS = 60
LINK = "link0"

# Stands for ssh: runs the command in the other namespace, under a name of its own. With the same one, or the same
# shared memory, MPI would take both for one host.
ENTER = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
shift
exec ip netns exec {namespace} unshare --uts --ipc bash -c "hostname far; exec $*"
"""


class Hosts:
    """Two network namespaces, joined by a link; the first is where the run is started, the second is called "far"."""

    def __init__(self, folder):
        self.namespaces = [f"lucid-{os.getpid()}-{host}" for host in ("near", "far")]
        self.enter = folder / "enter"

    def make(self):
        """Make both, or raise `OSError` or `CalledProcessError` where that is not permitted."""
        for namespace in self.namespaces:
            ip("netns", "add", namespace)
            ip("netns", "exec", namespace, "unshare", "--uts", "--ipc", "true")

    def join(self):
        near, far = self.namespaces
        ip("link", "add", LINK, "netns", near, "type", "veth", "peer", "name", LINK, "netns", far)
        for number, namespace in enumerate(self.namespaces, start=1):
            ip("-n", namespace, "link", "set", "lo", "up")
            ip("-n", namespace, "addr", "add", f"10.77.0.{number}/24", "dev", LINK)
            ip("-n", namespace, "link", "set", LINK, "up")
        self.enter.write_text(ENTER.format(namespace=far))
        self.enter.chmod(0o755)
        for namespace in self.namespaces:
            until(lambda namespace=namespace: " UP " in ip("-n", namespace, "-br", "link", "show", LINK))

    def remove(self):
        for namespace in self.namespaces:
            for pid in self.processes(namespace):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def processes(self, namespace):
        found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def mpiexec(self, launcher, ranks):
        """The command that starts as many `ranks` on each host."""
        addresses = ["-localhost", "10.77.0.1", "-hosts", "10.77.0.1,10.77.0.2"]
        by_ssh = ["-launcher", "ssh", "-launcher-exec", str(self.enter)]
        inside = ["ip", "netns", "exec", self.namespaces[0]]
        return [*inside, launcher, *by_ssh, *addresses, "-ppn", str(ranks), "-n", str(2 * ranks)]

    def set_link(self, state):
        ip("-n", self.namespaces[0], "link", "set", LINK, state)

    def bytes_sent(self):
        """How much has gone over the link, from the near end."""
        counter = f"/sys/class/net/{LINK}/statistics/tx_bytes"
        return int(subprocess.check_output(["ip", "netns", "exec", self.namespaces[0], "cat", counter]))


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def until(condition, seconds=SECONDS):
    """Wait for what comes about by itself, soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
