"""The rule of restarts: whether to start a run again after a failure, when, and with how many ranks.

The rule is a pure function of the attempts so far.
"""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lucid.errors import ExitCode

# In seconds. Faults that pass by themselves, such as a file system that remounts, mostly pass within a minute. Longer
# waits would only delay long runs with many faults.
LONGEST_WAIT = 60


@dataclass(frozen=True)
class Order:
    """What the user asked for. `backoff` is in seconds; without a hostfile there are no `hosts`."""

    restarts: int
    ranks: int
    min_ranks: int
    backoff: int
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
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


def decide(order: Order, attempts: Sequence[Attempt], allowed: Callable[[int], bool]) -> Restart | GiveUp:
    """Return what to do after these attempts. `allowed` says whether the settings allow a number of ranks."""
    last, count = attempts[-1], len(attempts)
    checkpoint = f"step {last.step:,}" if last.step else "none"
    what = f"{_in_words(last.exit_code)}, newest checkpoint: {checkpoint}"
    starts = _counted(count, "start")
    if count > order.restarts:
        return GiveUp(f"{what}; gives up after {starts}, as --restarts is {order.restarts}")
    if count > 1 and last.step <= attempts[-2].step:
        return GiveUp(f"{what}; gives up after {starts}, the last of which brought no newer checkpoint")
    lost = [host for host in order.hosts if host not in last.hosts]
    ranks = _most_ranks(order, len(last.hosts), allowed) if lost else order.ranks
    room = _counted(ranks, "rank")
    if order.hosts:
        room += f" on {_counted(len(last.hosts), 'host')}"
    if lost:
        room += f" ({', '.join(lost)} did not answer)"
    if ranks < order.min_ranks:
        return GiveUp(f"{what}; gives up after {starts}: {room}, and --min-ranks is {order.min_ranks}")
    wait = min(order.backoff * 2 ** (count - 1), LONGEST_WAIT)
    return Restart(ranks, last.hosts, wait, f"{what}; restart {count} of {order.restarts} in {wait} s with {room}")


def _most_ranks(order: Order, hosts_left: int, allowed: Callable[[int], bool]) -> int:
    """Return the largest allowed number of ranks with no more of them on a host than before, or 0."""
    ranks_per_host = -(-order.ranks // len(order.hosts))
    most = min(order.ranks, ranks_per_host * hosts_left)
    return next((ranks for ranks in range(most, 0, -1) if allowed(ranks)), 0)


def _in_words(exit_code: int) -> str:
    # mpiexec may combine the exit codes of several ranks bit by bit: say only what is certain.
    if exit_code < 0:
        return f"the launcher was killed by {signal.Signals(-exit_code).name}"
    return f"{'stopped and saved' if exit_code == ExitCode.STOPPED else 'failed'} with exit code {exit_code}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
