"""Starts a run again after a failure, from its newest checkpoint: `lucid launch --restarts N`.

After an attempt that failed, or that stopped and saved (exit code 75), `restart_rule.decide` says whether to start
again, and with how many ranks on which hosts. The number of ranks is not a hyperparameter: a run that goes on with
fewer keeps its loss curve.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lucid.errors import ExitCode, LaunchError
from lucid.launch import hostfile
from lucid.launch.attempt import STOP_SIGNALS, Ended, say
from lucid.launch.options import Options, Restarts
from lucid.launch.restart_rule import AttemptEnd, GiveUp, RestartPolicy, decide

# From a run's file and overrides to the step of its newest whole checkpoint, and to the function `ranks_that_serve`.
Progress = Callable[[Path, Sequence[str]], tuple[int, Callable[[int], int]]]
# Starts so many ranks on these hosts, and waits for their end.
Attempt = Callable[[int, tuple[str, ...]], Ended]

# After these another start gains nothing.
FINAL = (ExitCode.FINISHED, ExitCode.REFUSED, ExitCode.INTERRUPTED)


def supervise(
    options: Options, restarts: Restarts, ranks: int, room: Mapping[str, int], attempt: Attempt, progress: Progress
) -> int:
    """Make attempts until one is final or `decide` gives up; return the exit code of the last. Raises `LucidError`.

    `room` says how many ranks each host may have; without a hostfile it names no host.

    A signal ends the run, and not only the attempt: a scheduler that sends SIGUSR1 before its time limit waits for the
    checkpoint and the exit code, and queues the run again itself.
    """
    min_ranks = ranks if restarts.min_ranks is None else restarts.min_ranks
    if min_ranks > ranks:
        raise LaunchError(f"--min-ranks is {min_ranks}, but the run starts with {ranks}: lower it")
    policy = RestartPolicy(restarts.most, ranks, min_ranks, restarts.backoff, room)
    config, *overrides = options.arguments
    hosts = tuple(room)
    attempts: list[AttemptEnd] = []
    while True:
        ended = attempt(ranks, hosts)
        if ended.stop_asked or ended.exit_code in FINAL:
            return ended.status
        step, ranks_that_serve = progress(Path(config), overrides)
        lost = hostfile.unusable(tuple(room))
        answering = tuple(host for host in room if host not in lost)
        attempts.append(AttemptEnd(ended.exit_code, step, answering))
        decision = decide(policy, attempts, ranks_that_serve)
        say(decision.sentence)
        if isinstance(decision, GiveUp):
            return ended.status
        if signal.sigtimedwait(STOP_SIGNALS, decision.wait):
            say("asked to stop: no restart")
            return ended.status
        ranks, hosts = decision.ranks, decision.hosts
