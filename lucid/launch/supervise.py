"""Starts a run again after a failure, from its newest checkpoint: `lucid launch --restarts N`.

Each attempt is a `lucid launch` of its own, without restarts. After one that failed, or that stopped and saved (exit
code 75), `restart_rule.decide` says from what is known of all attempts whether to go on, and with how many ranks on
which hosts; this file finds that out, and does it. As the number of ranks is not a hyperparameter, a run that goes on
with fewer has the same curve.
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
from lucid.launch.restart_rule import Attempt, GiveUp, Order, decide

# Given a run's file and overrides: the step of its newest whole checkpoint, and whether it allows a number of ranks.
Progress = Callable[[Path, Sequence[str]], tuple[int, Callable[[int], bool]]]

# After these nothing is gained by another start: finished, a mistake in the settings or the input, Ctrl-C.
FINAL = (ExitCode.FINISHED, ExitCode.REFUSED, ExitCode.INTERRUPTED)
# Any of them asks for the end of the run, not of an attempt: a scheduler that warns with SIGUSR1 wants the checkpoint
# and the exit code before the time is over, to queue the run again.
STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def supervise(options: Options, restarts: Restarts, ranks: int, hosts: tuple[str, ...], progress: Progress) -> int:
    """Run until the end, or until `decide` gives up; return the exit code of the last attempt. Raises `LucidError`."""
    min_ranks = ranks if restarts.min_ranks is None else restarts.min_ranks
    if min_ranks > ranks:
        raise LaunchError(f"--min-ranks is {min_ranks}, but the run starts with {ranks}: lower it")
    order = Order(restarts.most, ranks, min_ranks, restarts.backoff, hosts)
    config, *overrides = options.arguments
    attempt_options = ["--gpus"] if options.gpus else []
    attempts: list[Attempt] = []
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    while True:
        exit_code, stop_asked = _run(ranks, hosts, (*attempt_options, *options.arguments))
        status = exit_code if exit_code >= 0 else 128 - exit_code
        if stop_asked or exit_code in FINAL:
            return status
        step, allowed = progress(Path(config), overrides)
        lost = hostfile.unusable(order.hosts)
        answering = tuple(host for host in order.hosts if host not in lost)
        attempts.append(Attempt(exit_code, step, answering))
        decision = decide(order, attempts, allowed)
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
    """Run one attempt; return its exit code (-N: killed by signal N), and whether it was asked to stop.

    `STOP_SIGNALS` and SIGCHLD are blocked in this process, so that none is lost between two looks. A stop signal is
    passed on to the launcher alone: it is in a process group of its own, where Ctrl-C does not reach it a second time.
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
    """Start `lucid launch` such that it cannot outlive this process."""
    options, descriptors = ["-n", str(ranks)], []
    if hosts:
        # A hostfile in memory: there is nothing to clean up, however this ends.
        descriptors.append(os.memfd_create("hosts"))
        os.write(descriptors[0], "".join(f"{host}\n" for host in hosts).encode())
        options += ["--hostfile", f"/dev/fd/{descriptors[0]}"]
    parent, libc = os.getpid(), ctypes.CDLL(None)

    def before_it_runs() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: the launcher, and with it all ranks, end when we do
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
