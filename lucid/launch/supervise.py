"""Starts a run again after a fault, from its newest checkpoint: what `launch/mpirun.sh --restarts N` hands over to.

Each attempt is an `mpirun` of its own, without restarts. After one that failed, or that stopped and saved (exit code
75), `restart_rule.decide` says from what is known of all attempts whether to go on, and with how many ranks on which
hosts; this file finds that out, and does it. As the number of ranks is not a hyperparameter, a run that goes on with
fewer has the same curve.
"""

import argparse
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lucid.errors import ExitCode
from lucid.launch import hostfile
from lucid.launch.restart_rule import Attempt, GiveUp, Order, decide

# After these nothing is gained by another start: finished, a mistake in the settings or the input, Ctrl-C.
FINAL = (ExitCode.FINISHED, ExitCode.REFUSED, ExitCode.INTERRUPTED)
# Any of them asks for the end of the run, not of an attempt: a scheduler that warns with SIGUSR1 wants the checkpoint
# and the exit code before the time is over, to queue the run again.
STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def supervise(order: Order, config: Path, overrides: Sequence[str], options: Sequence[str]) -> int:
    """Run until the end, or until `decide` gives up; return the exit code of the last attempt.

    `options` are those of `mpirun.sh` that every attempt takes.
    """
    attempts: list[Attempt] = []
    ranks, hosts = order.ranks, order.hosts
    while True:
        exit_code, stop_asked = _run(ranks, hosts, (*options, str(config), *overrides))
        status = exit_code if exit_code >= 0 else 128 - exit_code
        if stop_asked or exit_code in FINAL:
            return status
        step, allowed = _progress(config, overrides)
        lost = hostfile.unusable(order.hosts)
        answering = tuple(host for host in order.hosts if host not in lost)
        attempts.append(Attempt(exit_code, step, answering))
        decision = decide(order, attempts, allowed)
        _say(decision.sentence)
        if isinstance(decision, GiveUp):
            return status
        if signal.sigtimedwait(STOP_SIGNALS, decision.wait):
            _say("asked to stop: no restart")
            return status
        ranks, hosts = decision.ranks, decision.hosts


def _run(ranks: int, hosts: Sequence[str], arguments: Sequence[str]) -> tuple[int, bool]:
    """Run one attempt; return its exit code (-N: killed by signal N), and whether it was asked to stop.

    The signals waited for are blocked in this process, so that none is lost between two looks. What comes is passed on,
    to the launcher alone: it is in a process group of its own, where Ctrl-C does not reach it a second time.
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
    """Start `mpirun` such that it cannot outlive this process."""
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
            [sys.executable, "-m", "lucid.launch.mpirun", *options, *arguments],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            process_group=0,
            preexec_fn=before_it_runs,
        )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _progress(config: Path, overrides: Sequence[str]) -> tuple[int, Callable[[int], bool]]:
    """Return the step of the newest whole checkpoint, and whether the settings allow a number of ranks."""
    from lucid.errors import ConfigError, LucidError
    from lucid.training.checkpoints.store import CheckpointStore
    from lucid.training.config import load

    try:
        settings = load(config, overrides)
        checkpoint, _ = CheckpointStore(settings.run_folder / "checkpoints").newest()
    except LucidError as error:
        _fail(str(error))

    def allowed(ranks: int) -> bool:
        try:
            settings.check_ranks(ranks)
        except ConfigError:
            return False
        return True

    return (checkpoint.state.step if checkpoint else 0), allowed


def _say(sentence: str) -> None:
    print(f"supervise: {sentence}", file=sys.stderr, flush=True)


def _fail(sentence: str) -> NoReturn:
    _say(sentence)
    sys.exit(ExitCode.REFUSED)


def main() -> int:
    """Read the command line, whose options `launch/mpirun.sh --help` explains, and supervise the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--restarts", type=int, required=True)
    parser.add_argument("--min-ranks", type=int)
    parser.add_argument("--backoff", type=int, default=2)
    parser.add_argument("-n", dest="ranks", type=int, required=True)
    parser.add_argument("--hostfile", type=Path)
    parser.add_argument("--gpus", action="store_true")
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    hosts = hostfile.read(given.hostfile) if given.hostfile else ()
    min_ranks = given.ranks if given.min_ranks is None else given.min_ranks
    if min_ranks > given.ranks:
        _fail(f"--min-ranks is {min_ranks}, but the run starts with {given.ranks}: lower it")
    if given.min_ranks is not None and not hosts:
        _fail("--min-ranks goes with --hostfile: only a host that is lost makes the ranks fewer")
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    order = Order(given.restarts, given.ranks, min_ranks, given.backoff, hosts)
    return supervise(order, given.config, given.overrides, ["--gpus"] if given.gpus else [])


if __name__ == "__main__":
    sys.exit(main())
