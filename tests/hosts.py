"""Two hosts on one machine, for tests over a network: two network namespaces with a link between them.

They are called "near" and "far", and know each other by these names. They need root, and a kernel that permits
namespaces.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

SECONDS = 60
LINK = "link0"

# Replaces ssh: runs the command in the other namespace with a hostname and shared memory of its own. Otherwise MPI
# would take both for one host. Commands for other hosts go to ssh itself.
ENTER = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
host=$1
shift
if [[ $host != far && $host != 10.77.0.2 ]]; then exec ssh -o BatchMode=yes "$host" "$@"; fi
exec ip netns exec {namespace} unshare --uts --ipc bash -c "hostname far; $*"
"""


class Hosts:
    """Two network namespaces with a link between them. A run is started in the first."""

    def __init__(self, folder):
        self.namespaces = [f"lucid-{os.getpid()}-{host}" for host in ("near", "far")]
        self.enter = folder / "enter"

    def make(self):
        """Make both. Raises `OSError` or `CalledProcessError` if that is not permitted."""
        for namespace in self.namespaces:
            # For commands under `ip netns exec`, files in this folder replace those in /etc.
            names = Path("/etc/netns", namespace, "hosts")
            names.parent.mkdir(parents=True)
            names.write_text("127.0.0.1 localhost\n10.77.0.1 near\n10.77.0.2 far\n")
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
            shutil.rmtree(Path("/etc/netns", namespace), ignore_errors=True)

    def processes(self, namespace):
        found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def mpiexec(self, launcher, ranks):
        """Return the command that starts `ranks` ranks on each host."""
        by_ssh = ["-launcher", "ssh", "-launcher-exec", str(self.enter)]
        return [*self.on_near(launcher), *by_ssh, "-hosts", "near,far", "-ppn", str(ranks), "-n", str(2 * ranks)]

    def on_near(self, *command):
        """Return the command that runs `command` on the near host."""
        named = ["unshare", "--uts", "--ipc", "bash", "-c", 'hostname near; exec "$@"', "near"]
        return ["ip", "netns", "exec", self.namespaces[0], *named, *command]

    def set_link(self, state):
        ip("-n", self.namespaces[0], "link", "set", LINK, state)

    def bytes_sent(self):
        """Return how many bytes the near host has sent over the link."""
        counter = f"/sys/class/net/{LINK}/statistics/tx_bytes"
        return int(subprocess.check_output(["ip", "netns", "exec", self.namespaces[0], "cat", counter]))


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def until(condition, seconds=SECONDS):
    """Wait until `condition` returns true, for at most `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
