"""The rule of restarts: whether to start a run again after a failure, when, and with how many ranks.

The rule is a pure function of the attempts so far.
"""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lucid.errors import ExitCode

# In seconds. Faults that pass by themselves, such as a file system that remounts, mostly pass within a minute. Longer
# waits would only delay long runs with many faults.
LONGEST_WAIT = 60


@dataclass(frozen=True)
class RestartPolicy:
    """What the user asked for. `backoff` is in seconds.

    `room` says how many ranks each host may have; without a hostfile it names no host.
    """

    restarts: int
    ranks: int
    min_ranks: int
    backoff: int
    room: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class AttemptEnd:
    """How an attempt ended: exit code, step of the newest whole checkpoint (0: none), and the hosts that answer now."""

    exit_code: int
    step: int
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restart:
    """Start again after `wait` seconds. The sentence is for the user."""

    ranks: int
    hosts: tuple[str, ...]
    wait: int
    sentence: str


@dataclass(frozen=True)
class GiveUp:
    """End with the exit code of the last attempt."""

    sentence: str


def decide(
    policy: RestartPolicy, attempts: Sequence[AttemptEnd], ranks_that_serve: Callable[[int], int]
) -> Restart | GiveUp:
    """Return what to do after these attempts. `ranks_that_serve` is the one of the settings (`RunConfig`)."""
    last, count = attempts[-1], len(attempts)
    checkpoint = f"step {last.step:,}" if last.step else "none"
    what = f"{_in_words(last.exit_code)}, newest checkpoint: {checkpoint}"
    starts = _counted(count, "start")
    if count > policy.restarts:
        return GiveUp(f"{what}; gives up after {starts}, as --restarts is {policy.restarts}")
    if count > 1 and last.step <= attempts[-2].step:
        return GiveUp(f"{what}; gives up after {starts}, the last of which brought no newer checkpoint")
    lost = [host for host in policy.room if host not in last.hosts]
    ranks = ranks_that_serve(_most_ranks(policy, last.hosts)) if lost else policy.ranks
    where = _counted(ranks, "rank")
    if policy.room:
        where += f" on {_counted(len(last.hosts), 'host')}"
    if lost:
        where += f" ({', '.join(lost)} did not answer)"
    if ranks < policy.min_ranks:
        return GiveUp(f"{what}; gives up after {starts}: {where}, and --min-ranks is {policy.min_ranks}")
    wait = min(policy.backoff * 2 ** (count - 1), LONGEST_WAIT)
    return Restart(ranks, last.hosts, wait, f"{what}; restart {count} of {policy.restarts} in {wait} s with {where}")


def _most_ranks(policy: RestartPolicy, hosts: Sequence[str]) -> int:
    """Return the ranks of the start, or as many as these hosts may have."""
    return min(policy.ranks, sum(policy.room[host] for host in hosts))


def _in_words(exit_code: int) -> str:
    # mpiexec may combine the exit codes of several ranks bit by bit: say only what is certain.
    if exit_code < 0:
        return f"the launcher was killed by {signal.Signals(-exit_code).name}"
    return f"{'stopped and saved' if exit_code == ExitCode.STOPPED else 'failed'} with exit code {exit_code}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
