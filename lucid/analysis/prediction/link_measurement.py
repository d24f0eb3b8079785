"""Measures the link between nodes for `link_model`: its rate and latency, and what messages take of the processor."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lucid.analysis.prediction.link_model import Link, bytes_sent
from lucid.backend import CPU
from lucid.distributed import Communicator, gather_texts
from lucid.training.run_on_rank import Run

_TURNS = 5
# Short messages that are timed at once.
_MESSAGES = 64
# While a rank does something else, messages take up to so many times as long, and each byte of it so many seconds more.
_LONGER, _PER_BYTE = 1.5, 1e-8


def measured_link(run: Run, sums: Sequence[float], add: float) -> Link:
    """Return the link between the nodes of `run`. All ranks call this.

    `sums` are the seconds of some sums of all gradients, and `add` those of an addition of two arrays as large. What
    nodes add meanwhile counts as the link's.
    """
    communicator, config, nodes = run.communicator, run.config, run.communicator.node_count
    itemsize = 2 if config.distributed.wire_dtype == "bfloat16" else 4
    halves = 1 if config.optimizer.sharded else 2
    sent = bytes_sent(len(run.ddp.flat.gradients), nodes, itemsize) * halves / 2
    exchanges = halves * len(run.ddp.partition.buckets)
    latency = _seconds_of_messages(communicator, 1)
    rates = [sent / max(seconds - exchanges * latency, seconds / 2) for seconds in sums]
    rate = statistics.median(rates)
    link = Link(rate, latency, error=(max(rates) - min(rates)) / 2 / rate)
    if communicator.device != CPU:
        return link  # messages take no time of the processor that computes
    message = _seconds_of_messages(communicator, _MESSAGES) / _MESSAGES
    adding = add * (nodes - 1) / nodes / (communicator.size // nodes)
    of_rank = sent / (communicator.size // nodes)
    longest = _LONGER * max(sums) + _PER_BYTE * of_rank
    moving = _processor_seconds(run, longest) - adding - exchanges * (nodes - 1) * message
    return replace(link, seconds_per_message=message, seconds_per_byte=max(0.0, moving) / of_rank)


def _seconds_of_messages(communicator: Communicator, count: int) -> float:
    """Return the seconds in which the first two nodes swap `count` short messages. All ranks call this."""
    local_ranks = gather_texts(communicator, str(communicator.local_rank))
    pair = [rank for rank, text in enumerate(local_ranks) if text == "0"][:2]
    seconds = 0.0
    if communicator.rank in pair:
        peer = sum(pair) - communicator.rank
        outgoing, incoming, times = np.zeros(1), np.zeros((count, 1)), []
        for _ in range(10 * _TURNS):
            began = time.perf_counter()
            for work in [communicator.send_receive(outgoing, each, peer) for each in incoming]:
                work.wait()
            times.append(time.perf_counter() - began)
        seconds = statistics.median(times)
    return communicator.all_reduce_scalar(seconds) / len(pair)


def _processor_seconds(run: Run, seconds: float) -> float:
    """Return the processor time of this rank, a mean over ranks, for a sum of all gradients.

    For so many `seconds` the main thread sleeps, as it would otherwise compute: another thread communicates.
    """
    communicator, partition = run.communicator, run.ddp.partition
    communicator.barrier()
    began = time.process_time()
    works = [partition.sum(bucket) for bucket in range(len(partition.buckets))]
    time.sleep(seconds)
    for work in works:
        work.wait()
    return communicator.all_reduce_scalar(time.process_time() - began) / communicator.size
