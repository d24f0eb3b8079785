"""How fast ranks communicate, and whether the clocks of their hosts agree."""

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from lucid.backend import Array
from lucid.cli.doctor.findings import Finding, Level, ok_if
from lucid.cli.doctor.hosts import INFINIBAND, NETWORKS, interfaces
from lucid.distributed import Communicator, choose, gather_texts
from lucid.distributed.communicators.mpi import MPICommunicator

_MEGABYTES = (4, 64)
_LINK_BYTES = 16_000_000
# Repetitions, of which the fastest counts.
_TURNS = 5
# A link is slow if it has less than a third of the speed of its interface.
_LEAST_OF_INTERFACE = 1 / 3
_MOST_SKEW = 0.5  # seconds


class Link(NamedTuple):
    """The speed at which two hosts swap arrays, in bytes/s each way.

    `interface` carried them, at `gigabits` per second according to its driver; "" and 0 if unknown.
    """

    here: str
    there: str
    rate: float
    interface: str
    gigabits: float


def measure_network(group: MPICommunicator, memory_a_rank: float) -> Iterator[Finding]:
    """Measure links between hosts, all-reduces and clocks. All ranks call this, and get the same findings.

    `memory_a_rank` is the number of bytes that each rank may use, the same on all ranks.
    """
    if group.node_count > 1:
        yield from map(_judge_link, _links(group))
    communicator = choose(group, "auto")
    for megabytes in _MEGABYTES:
        if megabytes * 1e6 <= memory_a_rank:
            array = communicator.allocate(megabytes * 10**6 // 4, np.float32)
            yield _judge_sum(group, array, group.size, _seconds_of_all_reduce(communicator, array))
        else:
            text = f"{megabytes} MB left out: a rank can have {memory_a_rank / 1e6:,.0f} MB of memory"
            yield Finding(Level.WARNING, "all-reduce", f"{text}; free memory, or make /dev/shm larger")
    if group.node_count > 1:
        yield judge_clocks(group)


def _seconds_of_all_reduce(communicator: Communicator, array: Array) -> float:
    """Return the seconds of the fastest of some all-reduces on this rank. Afterwards `array` is a sum of ones."""
    times = []
    for _ in range(_TURNS):
        array[:] = 1
        communicator.barrier()
        started = time.perf_counter()
        communicator.all_reduce(array).wait()
        times.append(time.perf_counter() - started)
    return min(times)


def _judge_sum(group: Communicator, array: Array, right: float, seconds: float) -> Finding:
    """Judge an all-reduce by its slowest rank; its result must be `right` on all ranks. All ranks call this."""
    size, wrong = array.nbytes, group.all_reduce_scalar(float((array != right).any()))
    if wrong:
        text = f"{size / 1e6:g} MB: wrong sums on {wrong:g} ranks: try distributed.backend=mpi, or another MPI library"
        return Finding(Level.ERROR, "all-reduce", text)
    slowest = max(float(text) for text in gather_texts(group, str(seconds)))
    return Finding(
        Level.OK, "all-reduce", f"{size / 1e6:g} MB in {1e3 * slowest:,.1f} ms, {size / slowest / 1e9:.3g} GB/s"
    )


def _links(group: MPICommunicator) -> list[Link]:
    """Return the link between each two neighbouring hosts, as the first ranks of both measure it."""
    hosts = gather_texts(group, platform.node())
    firsts = [rank for rank, text in enumerate(gather_texts(group, str(group.local_rank))) if text == "0"]
    found = []
    # Every second pair, then the others: no host is in two pairs at once.
    for start in (0, 1):
        pairs = list(pairwise(firsts))[start::2]
        peer = next((sum(pair) - group.rank for pair in pairs if group.rank in pair), None)
        measured = gather_texts(group, json.dumps(_swap_arrays(group, peer) if peer is not None else None))
        found += [Link(hosts[one], hosts[other], *json.loads(measured[one])) for one, other in pairs]
    return found


def _swap_arrays(group: MPICommunicator, peer: int) -> tuple[float, str, float]:
    """Swap arrays with `peer`; return bytes/s, the interface that carried them and its Gbit/s, as in `Link`."""
    outgoing, incoming = np.ones(_LINK_BYTES, np.uint8), np.zeros(_LINK_BYTES, np.uint8)
    before, seconds = _sent_bytes(), np.inf
    for _ in range(_TURNS):
        started = time.perf_counter()
        group.send_receive(outgoing, incoming, peer).wait()
        seconds = min(seconds, time.perf_counter() - started)
    sent = {interface: count - before.get(interface, 0) for interface, count in _sent_bytes().items()}
    busiest = max(sent, key=lambda interface: sent[interface], default="")
    carrier = busiest if sent.get(busiest, 0) >= _TURNS * _LINK_BYTES / 2 else ""
    return _LINK_BYTES / seconds, carrier, interfaces().get(carrier, 0.0)


def _sent_bytes() -> dict[str, int]:
    """Return the number of bytes that each network interface has sent so far."""
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
        return Finding(Level.OK, "link", f"{text}, by an interface that does not count its bytes")
    text += f", by {link.interface}"
    if not link.gigabits:
        return Finding(Level.OK, "link", f"{text}, whose driver does not report its speed")
    advice = "is there a faster interface for MPI to use (UCX_NET_DEVICES=...), or is the network busy?"
    fast = gigabits > _LEAST_OF_INTERFACE * link.gigabits
    return ok_if(fast, "link", f"{text} of {link.gigabits:g} Gbit/s", advice)


def judge_clocks(group: Communicator, clock: Callable[[], float] = time.time) -> Finding:
    """Judge how far the clocks of all ranks are apart, which read them right after a barrier. All ranks call this."""
    readings = []
    for _ in range(_TURNS):
        group.barrier()
        readings.append([float(text) for text in gather_texts(group, repr(clock()))])
    best = min(readings, key=lambda times: max(times) - min(times))
    hosts = gather_texts(group, platform.node())
    first, last = hosts[best.index(min(best))], hosts[best.index(max(best))]
    skew = max(best) - min(best)
    advice = "times of files and in logs cannot be compared; let NTP or chrony set the clocks"
    return ok_if(skew < _MOST_SKEW, "clocks", f"at most {1e3 * skew:,.2f} ms apart ({first} and {last})", advice)
