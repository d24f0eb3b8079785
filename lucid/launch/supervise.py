"""Starts a run again after a failure, from its newest checkpoint: `lucid launch --restarts N`.

Each attempt is a `lucid launch` without restarts, in a process of its own. After an attempt that failed, or that
stopped and saved (exit code 75), `restart_rule.decide` says whether to start again, and with how many ranks on which
hosts. The number of ranks is not a hyperparameter: a run that goes on with fewer keeps its loss curve.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lucid.errors import ExitCode, LaunchError
from lucid.launch import hostfile
from lucid.launch.options import Options, Restarts
from lucid.launch.restart_rule import AttemptEnd, GiveUp, RestartPolicy, decide

# From a run's file and overrides to the step of its newest whole checkpoint, and which numbers of ranks it allows.
Progress = Callable[[Path, Sequence[str]], tuple[int, Callable[[int], bool]]]

# After these another start gains nothing.
FINAL = (ExitCode.FINISHED, ExitCode.REFUSED, ExitCode.INTERRUPTED)
# Each of them ends the run, and not only the attempt: a scheduler that sends SIGUSR1 before its time limit waits for
# the checkpoint and the exit code, and queues the run again itself.
STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def supervise(options: Options, restarts: Restarts, ranks: int, hosts: tuple[str, ...], progress: Progress) -> int:
    """Run attempts until one is final or `decide` gives up; return the exit code of the last. Raises `LucidError`."""
    min_ranks = ranks if restarts.min_ranks is None else restarts.min_ranks
    if min_ranks > ranks:
        raise LaunchError(f"--min-ranks is {min_ranks}, but the run starts with {ranks}: lower it")
    policy = RestartPolicy(restarts.most, ranks, min_ranks, restarts.backoff, hosts)
    config, *overrides = options.arguments
    attempt_options = ["--gpus"] if options.gpus else []
    attempts: list[AttemptEnd] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    while True:
        exit_code, stop_asked = _run(ranks, hosts, (*attempt_options, *options.arguments))
        status = exit_code if exit_code >= 0 else 128 - exit_code
        if stop_asked or exit_code in FINAL:
            return status
        step, allowed = progress(Path(config), overrides)
        lost = hostfile.unusable(policy.hosts)
        answering = tuple(host for host in policy.hosts if host not in lost)
        attempts.append(AttemptEnd(exit_code, step, answering))
        decision = decide(policy, attempts, allowed)
        say(decision.sentence)
        if isinstance(decision, GiveUp):
            return status
        if signal.sigtimedwait(STOP_SIGNALS, decision.wait):
            say("asked to stop: no restart")
            return status
        ranks, hosts = decision.ranks, decision.hosts


def say(sentence: str) -> None:
    """Print a sentence of the launcher to standard error."""
    print(f"lucid launch: {sentence}", file=sys.stderr, flush=True)


def _run(ranks: int, hosts: Sequence[str], arguments: Sequence[str]) -> tuple[int, bool]:
    """Run one attempt; return its exit code (-N: killed by signal N), and whether a signal asked it to stop.

    This process blocks `STOP_SIGNALS` and SIGCHLD and waits for them, so that it loses none. It passes a stop signal on
    to the attempt, which is in its own process group: so Ctrl-C does not reach it twice.
    """
    process = _start(ranks, hosts, arguments)
    stop_asked = False
    while process.poll() is None:
        number = signal.sigwait(STOP_SIGNALS | {signal.SIGCHLD})
        if number in STOP_SIGNALS:
            stop_asked = True
            process.send_signal(number)
    return process.returncode, stop_asked


def _start(ranks: int, hosts: Sequence[str], arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start an attempt that cannot outlive this process."""
    options, descriptors = ["-n", str(ranks)], []
    if hosts:
        # A hostfile in memory leaves nothing behind, however this process ends.
        descriptors.append(os.memfd_create("hosts"))
        os.write(descriptors[0], "".join(f"{host}\n" for host in hosts).encode())
        options += ["--hostfile", f"/dev/fd/{descriptors[0]}"]
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def before_it_runs() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: mpiexec and all ranks end with us
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | {signal.SIGCHLD})

    try:
        return subprocess.Popen(
            [sys.executable, "-m", "lucid", "launch", *options, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            process_group=0,
            preexec_fn=before_it_runs,
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
