"""How fast ranks communicate, beside what this machine could do, and whether the hosts' clocks agree."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lucid.backend import Array
from lucid.cli.doctor.findings import Finding, Level, ok_if
from lucid.cli.doctor.hosts import INFINIBAND, NETWORKS, interfaces
from lucid.distributed import Communicator, choose, gather_texts
from lucid.distributed.communicators.mpi import MPICommunicator

# The last is the gradients of BERT-base.
_MEGABYTES = (4, 64, 440)
# A sum that takes longer is left out.
_MOST_SECONDS = 4.0
_SECONDS_A_SIZE, _MOST_TURNS = 0.6, 20
_SECONDS_ON_A_LINK, _TURNS_ON_A_LINK = 0.3, 4
# What is slower than expected by more is warned of; a busy machine makes 2 of it.
_FAR_BELOW = 3.0
# Messages and wake-ups that no bandwidth counts.
_OVERHEAD = 1e-3
_ROUND_TRIPS = 20
_SKEW = 0.5  # seconds


class Link(NamedTuple):
    """How fast two hosts swapped arrays, in bytes a second each way, and the interface that carried them, if known."""

    here: str
    there: str
    rate: float
    interface: str
    gigabits: float


def measure_network(group: MPICommunicator, memory_a_rank: float) -> Iterator[Finding]:
    """Measure and judge. All ranks call this and go through all of it; every one gets the same findings.

    `memory_a_rank` is how many bytes a rank may take, and all ranks have to give the same.
    """
    # Three arrays: one to sum in each host, one between them, and a copy.
    sizes = [megabytes * 10**6 for megabytes in _MEGABYTES if 3e6 * megabytes <= memory_a_rank] or [10**6]
    if group.node_count == 1:
        yield from _all_reduces(group, choose(group, "auto"), sizes, "all-reduce", _copying, memory_a_rank)
        return
    links = _links(group)
    for link in links:
        yield _judge_link(link)
    slowest = min(link.rate for link in links)
    if group.evenly_spread and group.size > group.node_count:
        host = choose(group.within_node(), "auto")
        yield from _all_reduces(group, host, sizes, "in each host", _copying, memory_a_rank)

    def expected(communicator: Communicator, array: Array, scratch: Array) -> float:
        sent = 2 * (group.node_count - 1) / group.node_count * array.nbytes
        return _copying(communicator, array, scratch) + sent / slowest

    yield from _all_reduces(group, choose(group, "auto"), sizes, "between hosts", expected, memory_a_rank)
    yield _clocks(group)


def _all_reduces(
    group: Communicator,
    part: Communicator,
    sizes: list[int],
    subject: str,
    expectation: Callable[[Communicator, Array, Array], float],
    memory: float,
) -> Iterator[Finding]:
    """Time sums of arrays of so many bytes over the ranks of `part`, beside what is expected of them.

    `part` is all of `group`, or one of its parts that do this at once.
    """
    whole = part.allocate(sizes[-1] // 4, np.float32)
    scratch = np.zeros_like(whole)
    if sizes[-1] < _MEGABYTES[-1] * 10**6:
        text = f"larger arrays were left out, as {memory / 1e6:,.0f} MB can be had for a rank"
        yield Finding(Level.WARNING, subject, f"{text}: free memory, or make /dev/shm larger")
    for size in sizes:
        array = whole[: size // 4]
        expected = expectation(part, array, scratch[: size // 4])
        longest = max(float(text) for text in gather_texts(group, str(expected)))
        if longest > _MOST_SECONDS:
            yield Finding(Level.OK, subject, f"{size / 1e6:g} MB left out, as {longest:.0f} s are expected of it")
            continue
        seconds = _shortest(part, array, partial(_sum, part))
        yield _judge_sum(group, array, part.size, subject, seconds, expected)


def _judge_sum(
    group: Communicator, array: Array, right: float, subject: str, seconds: float, expected: float
) -> Finding:
    """Judge a sum that has to be `right` everywhere by the rank that it took the longest on. All ranks call this."""
    size, wrong = array.nbytes, group.all_reduce_scalar(float((array != right).any()))
    if wrong:
        text = f"{size / 1e6:g} MB: wrong sums on {wrong:g} ranks: try distributed.backend=mpi, or another MPI library"
        return Finding(Level.ERROR, subject, text)
    own = (seconds / expected, seconds, expected, platform.node())
    _, seconds, expected, host = max(json.loads(text) for text in gather_texts(group, json.dumps(own)))
    text = f"{size / 1e6:g} MB in {1e3 * seconds:,.1f} ms, {size / seconds / 1e9:.3g} GB/s"
    advice = f"is something else running on {host}, or are ranks bound to the same cores?"
    well = seconds < _FAR_BELOW * expected + _OVERHEAD
    return ok_if(well, subject, f"{text} ({size / expected / 1e9:.3g} expected)", advice)


def _sum(communicator: Communicator, array: Array) -> None:
    communicator.all_reduce(array).wait()


def _copying(communicator: Communicator, array: Array, scratch: Array) -> float:
    """Return the seconds in which all ranks at once copy `array`: a sum reads and writes each rank's array once too."""
    return _shortest(communicator, array, lambda array: np.copyto(scratch, array))


def _shortest(communicator: Communicator, array: Array, action: Callable[[Array], None]) -> float:
    """Return the seconds of the fastest of some calls, until the last rank is done. `array` is of ones before each."""
    times: list[float] = []
    spent = 0.0
    while len(times) < _MOST_TURNS and spent < _SECONDS_A_SIZE:
        array[:] = 1
        communicator.barrier()
        started = time.perf_counter()
        action(array)
        # The same sum on all ranks, which so stop together; and none has it before the last is done.
        spent += communicator.all_reduce_scalar(time.perf_counter() - started) / communicator.size
        times.append(time.perf_counter() - started)
    return min(times)


def _links(group: MPICommunicator) -> list[Link]:
    """Return the speed between each two hosts that are neighbours, measured by their first ranks."""
    firsts = [rank for rank, text in enumerate(gather_texts(group, str(group.local_rank))) if text == "0"]
    found: list[Link] = []
    # Pairs first, then the pairs between them: no host is in two at once.
    for start in (0, 1):
        pairs = list(pairwise(firsts))[start::2]
        peer = next((sum(pair) - group.rank for pair in pairs if group.rank in pair), None)
        own = _link(group, peer) if peer is not None else None
        texts = gather_texts(group, json.dumps(own))
        found += [Link(*json.loads(texts[one])) for one, _ in pairs]
    return found


def _link(group: MPICommunicator, peer: int) -> Link:
    """Swap arrays with `peer`, longer ones as long as they take little time."""
    name = np.zeros(64, np.uint8)
    own_name = np.zeros_like(name)
    encoded = platform.node().encode()[:64]
    own_name[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    group.send_receive(own_name, name, peer).wait()
    size, seconds = 250_000, 0.0
    while seconds < _SECONDS_ON_A_LINK / 4 and size < 64e6:
        size *= 4
        outgoing, incoming = np.ones(size, np.uint8), np.zeros(size, np.uint8)
        before = _carried()
        seconds = np.inf
        for _ in range(_TURNS_ON_A_LINK):
            started = time.perf_counter()
            group.send_receive(outgoing, incoming, peer).wait()
            seconds = min(seconds, time.perf_counter() - started)
        # Both go on, or neither does.
        mine, theirs = np.array([seconds]), np.zeros(1)
        group.send_receive(mine, theirs, peer).wait()
        seconds = max(seconds, float(theirs[0]))
    grown = {interface: count - before.get(interface, 0) for interface, count in _carried().items()}
    busiest = max(grown, key=lambda interface: grown[interface], default="")
    carried = busiest if grown.get(busiest, 0) >= size * _TURNS_ON_A_LINK / 2 else ""
    there = name.tobytes().rstrip(b"\0").decode(errors="replace")
    return Link(platform.node(), there, size / seconds, carried, interfaces().get(carried, 0.0))


def _carried() -> dict[str, int]:
    """Return how many bytes each interface has sent."""
    counts = {}
    for name in interfaces():
        device, _, port = name.partition(":")
        if port:  # InfiniBand counts words of four bytes
            path, unit = INFINIBAND / device / "ports" / port / "counters/port_xmit_data", 4
        else:
            path, unit = NETWORKS / name / "statistics/tx_bytes", 1
        with suppress(OSError):
            counts[name] = unit * int(path.read_text())
    return counts


def _judge_link(link: Link) -> Finding:
    gigabits = 8 * link.rate / 1e9
    text = f"{link.here} to {link.there} {gigabits:.3g} Gbit/s each way at once"
    if not link.interface:
        return Finding(Level.OK, "link", f"{text}, by an interface that does not count")
    text += f", by {link.interface}"
    if not link.gigabits:
        return Finding(Level.OK, "link", f"{text}, whose speed its driver does not tell")
    advice = "is there a faster interface for MPI to use (UCX_NET_DEVICES=...), or is the network busy?"
    return ok_if(gigabits * _FAR_BELOW > link.gigabits, "link", f"{text} of {link.gigabits:g} Gbit/s", advice)


def clock_offsets(group: Communicator, clock: Callable[[], float] = time.time) -> list[tuple[float, float]]:
    """Return by how many seconds every rank's clock is ahead of the first one's, and how far that may be off.

    As NTP does: the other's time is compared with the middle between question and answer, in the quickest of some round
    trips. All ranks call this together.
    """
    own = (0.0, 0.0)
    for peer in range(1, group.size):
        group.barrier()
        if group.rank == 0:
            trips = [_ask(group, peer, clock) for _ in range(_ROUND_TRIPS)]
            offset, error = min(trips, key=lambda trip: trip[1])
            result = np.array([offset, error])
            group.send_receive(result, np.zeros(2), peer).wait()
        elif group.rank == peer:
            for _ in range(_ROUND_TRIPS):
                _swap(group, 0, 0.0)
                _swap(group, 0, clock())
            answer = np.zeros(2)
            group.send_receive(np.zeros(2), answer, 0).wait()
            own = (float(answer[0]), float(answer[1]))
    return [(offset, error) for offset, error in (json.loads(text) for text in gather_texts(group, json.dumps(own)))]


def _ask(group: Communicator, peer: int, clock: Callable[[], float]) -> tuple[float, float]:
    asked = clock()
    _swap(group, peer, 0.0)
    time_there = _swap(group, peer, 0.0)
    answered = clock()
    return time_there - (asked + answered) / 2, (answered - asked) / 2


def _swap(group: Communicator, peer: int, value: float) -> float:
    received = np.zeros(1)
    group.send_receive(np.array([value]), received, peer).wait()
    return float(received[0])


def _clocks(group: MPICommunicator) -> Finding:
    """Judge the clocks of all hosts."""
    names = gather_texts(group, platform.node())
    offsets = clock_offsets(group)
    worst = max(range(group.size), key=lambda rank: abs(offsets[rank][0]))
    offset, error = offsets[worst]
    text = f"at most {1e3 * abs(offset):,.2f} ms apart (+- {1e3 * error:.2f}; {names[worst]} and {names[0]})"
    advice = "times of files and in logs cannot be compared; let NTP or chrony set the clocks"
    return ok_if(abs(offset) < _SKEW, "clocks", text, advice)
