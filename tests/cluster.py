"""A SLURM for tests: munged, slurmctld and two slurmd on this machine, on free ports and in one folder."""

import getpass
import os
import re
import shutil
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

from hosts import until

# The limit for a run of a few seconds on a busy machine.
SECONDS = 150
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
NODES = ("node1", "node2")

# The scheduler looks every few seconds, not once a minute. A job that is queued again waits for cred_expire, not for
# two minutes. The GPUs are plain files, which SLURM counts.
CONFIGURATION = """
ClusterName=lucid-tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=8
CredType=cred/munge
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=20
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeAddr=127.0.0.1 NodeHostname=localhost Port={node1} CPUs=4 RealMemory=2000 Gres=gpu:2
NodeName=node2 NodeAddr=127.0.0.1 NodeHostname=localhost Port={node2} CPUs=4 RealMemory=2000 Gres=gpu:2
PartitionName=tests Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""


def program(name: str) -> str | None:
    """Return the path of a program. Daemons are not in every user's PATH."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    """Two nodes of four cores. Commands need the environment variables in `variables`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.variables = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir()
        with ExitStack() as stack:
            sockets = {name: stack.enter_context(socket.socket()) for name in ("controller", *NODES)}
            for each in sockets.values():
                each.bind(("127.0.0.1", 0))
            ports = {name: each.getsockname()[1] for name, each in sockets.items()}
        text = CONFIGURATION.format(folder=self.folder, user=getpass.getuser(), **ports)
        (self.folder / "slurm.conf").write_text(text)
        # Without this file slurmd needs a mounted control group.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")
        munge = self.folder / "munge"
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        files = (f"--{what}-file={munge / what}" for what in ("key", "pid", "log", "seed"))
        self._start("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files)
        until((munge / "socket").exists)
        self._start("slurmctld", "-D")
        for node in NODES:
            self._start("slurmd", "-D", "-N", node)
        ready = ("sinfo", "-h", "-t", "idle", "-o", "%D")
        until(lambda: self.run(*ready, check=False).strip() == str(len(NODES)))

    def stop(self) -> None:
        """End the jobs, and then the daemons in reverse order, since each may need those before it."""
        self.run("scancel", f"--user={getpass.getuser()}", check=False)
        until(lambda: self.processes() == [], SECONDS)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(SECONDS)

    def _start(self, *command: str) -> None:
        """Start a daemon that ends with this process."""
        self._daemons.append(
            subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", program(command[0]), *command[1:]],
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of SLURM, and return its output."""
        finished = subprocess.run(
            [program(command[0]) or command[0], *command[1:]],
            env=os.environ | self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if check:
            assert finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"
        return finished.stdout

    def processes(self) -> list[int]:
        """Return the processes of all jobs, on both nodes."""
        return self._with_variable(b"SLURM_JOB_ID=")

    def ranks(self) -> list[int]:
        """Return the processes of ranks, without their parents."""
        return self._with_variable(b"LUCID_RANK_STATUS_PAGE=")

    def _with_variable(self, name: bytes) -> list[int]:
        """Return the processes of this SLURM whose environment has this variable."""
        ours = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it has ended meanwhile
                variables = environment.read_bytes().split(b"\0")
                if ours in variables and any(variable.startswith(name) for variable in variables):
                    found.append(int(environment.parent.name))
        return found


class Job:
    """A job that was submitted, or a task of an array; its output goes to `log`."""

    def __init__(self, cluster: Cluster, number: str, log: Path) -> None:
        self.cluster, self.number, self.log = cluster, number, log

    def shown(self, name: str) -> str:
        """Return the field of this name in `scontrol show job`."""
        return re.search(rf"\b{name}=(\S*)", self.cluster.run("scontrol", "show", "job", self.number))[1]

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, fragment: str) -> None:
        """Wait until its output contains `fragment`."""
        until(lambda: fragment in self.output or self._ended(), SECONDS)
        assert fragment in self.output, f"{self.shown('JobState')}:\n{self.output}"

    def wait(self) -> str:
        """Wait until it has ended, and return its state."""
        until(self._ended, SECONDS)
        return self.shown("JobState")

    def _ended(self) -> bool:
        return self.shown("JobState") not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")

    def signal(self) -> None:
        """Send the signal that SLURM sends two minutes before a job's time limit."""
        self.cluster.run("scancel", "--signal=USR1", "--batch", self.number)
