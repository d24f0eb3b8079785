"""One attempt of a run: an mpiexec below this process, and what signals to this process mean to it.

mpiexec would end at once when its terminal closes, when nobody reads its output any more, or when the disk of its log
is full. It would also end all ranks at a second Ctrl-C, but with ten lines about itself. So this process stays its
parent: it passes signals on as requests to save, and copies the output as long as somebody takes it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from lucid import output
from lucid.errors import ExitCode
from lucid.launch.processes import adopt_orphans, bound_to_this_process, end_children

# A signal that the user had ignored at the start, as nohup does with SIGHUP, stays so.
STOP_SIGNALS = frozenset(
    number
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)
    if signal.getsignal(number) is not signal.SIG_IGN
)
# Launchers lose signals that arrive before their ranks have started.
_SECONDS_BETWEEN_REQUESTS = 5.0
# A terminal and a program between may both pass on one Ctrl-C, as `timeout` does to its command and to its group.
_SECONDS_OF_ONE_PRESS = 0.5
# A process that cannot be ended may hold the output open.
_SECONDS_FOR_THE_OUTPUT = 2.0
_SHOW_THE_CURSOR = "\x1b[?25h"


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: its exit code (-N: mpiexec was killed by signal N), and whether a signal asked for it."""

    exit_code: int
    stop_asked: bool

    @property
    def status(self) -> int:
        """The exit code of this process for it: 128 + N after signal N."""
        return self.exit_code if self.exit_code >= 0 else 128 - self.exit_code


def say(sentence: str) -> None:
    """Print a sentence of the launcher to standard error."""
    print(f"lucid launch: {sentence}", file=sys.stderr, flush=True)


def block_signals() -> None:
    """Let the signals that `run` waits for wait for it, too. Call it once, before the first attempt."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})


def run(command: Sequence[str], variables: Mapping[str, str], descriptors: Sequence[int], can_save: bool) -> Ended:
    """Run `command`, an mpiexec, with more environment `variables` and open file `descriptors`, to its end.

    Signals ask the ranks to save and stop. The first Ctrl-C does, too, if they can save; one that comes more than
    `_SECONDS_OF_ONE_PRESS` later ends them at once. If mpiexec is killed, its ranks would end a moment later: nothing
    of the attempt is left when this returns.
    """
    if found := signal.sigtimedwait(STOP_SIGNALS, 0):  # it came while hosts were checked
        say("asked to stop before the ranks had started")
        return Ended(ExitCode.INTERRUPTED if found.si_signo == signal.SIGINT else ExitCode.STOPPED, stop_asked=True)
    # Every MPI passes SIGUSR1 on to the ranks, where it asks for a stop, and leaves them the time that they need. A
    # rank that is still starting keeps it until then.
    request = signal.SIGUSR1 if can_save else signal.SIGTERM
    adopt_orphans()
    process = _start(command, variables, descriptors)
    copiers = [_copy(process.stdout, 1), _copy(process.stderr, 2)]
    asked: dict[signal.Signals, float] = {}  # when each came first
    while process.poll() is None:
        number = _next_signal(_SECONDS_BETWEEN_REQUESTS if asked else None)
        pressed = asked.get(signal.SIGINT)
        is_second = pressed is not None and time.monotonic() - pressed > _SECONDS_OF_ONE_PRESS
        if number == signal.SIGINT and (is_second or not can_save):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            end_children()
            if sys.stdout.isatty():
                print(_SHOW_THE_CURSOR, end="", flush=True)  # the live line of the first rank had hidden it
            return Ended(ExitCode.INTERRUPTED, stop_asked=True)
        if number == signal.SIGINT and pressed is None:
            if sys.stderr.isatty():
                print(file=sys.stderr)  # the terminal has printed ^C
            say("Ctrl-C: the run saves and stops after this step; a second Ctrl-C ends it at once")
        if number in STOP_SIGNALS:
            asked.setdefault(number, time.monotonic())
        if number != signal.SIGCHLD:
            process.send_signal(request)
    end_children()
    for copier in copiers:
        copier.join(_SECONDS_FOR_THE_OUTPUT)
    interrupted = signal.SIGINT in asked and process.returncode == ExitCode.STOPPED
    return Ended(ExitCode.INTERRUPTED if interrupted else process.returncode, bool(asked))


def _next_signal(seconds: float | None) -> signal.Signals | None:
    """Wait for a signal, and return it; return None if none has come in so many seconds."""
    awaited = STOP_SIGNALS | {signal.SIGCHLD}
    if seconds is None:
        return signal.Signals(signal.sigwait(awaited))
    found = signal.sigtimedwait(awaited, seconds)
    return signal.Signals(found.si_signo) if found else None


def _copy(source: IO[bytes] | None, target: int) -> threading.Thread:
    """Copy what comes from `source` to the descriptor `target` in a thread, as long as somebody takes it."""
    assert source is not None

    def work() -> None:
        with source:
            output.copy(source.fileno(), target)

    copier = threading.Thread(target=work, daemon=True)
    copier.start()
    return copier


def _start(command: Sequence[str], variables: Mapping[str, str], descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start `command` so that it cannot outlive this process, and that a terminal's signals do not reach it."""
    bind = bound_to_this_process()

    def before_it_runs() -> None:
        bind()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | {signal.SIGCHLD})

    return subprocess.Popen(
        command,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=descriptors,
        process_group=0,
        preexec_fn=before_it_runs,
    )
