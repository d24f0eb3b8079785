"""The sum of an array over processes that share no memory, by messages between each two of them.

Every process sums one part of the array: it gets that part from all, adds, and sends the sum to all. So each sends and
receives 2 (P - 1) / P times the array, as in any all-reduce that is as good as can be, and the order of additions is
fixed: along the exact reduction's tree.

As bfloat16 messages are half as large. Each term is rounded when it is sent, but for the adding process's own; terms
are added as float32, and the sum is rounded. So a result is off by 2**-8 of itself and of the terms at most, on any
number of processes, where a ring or a tree of messages would round sums of sums. All take the rounded sum, the adding
process too: so all have the same bits.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from lucid.backend import Array
from lucid.distributed.communicators import sums

WireDtype = Literal["float32", "bfloat16"]


def all_reduce(mpi: Any, ranks: Any, array: Array, tag: int, wire_dtype: np.dtype[Any]) -> Iterator[None]:
    """Replace `array` [N] by its sum over `ranks`, in place, bit by bit: each `next` does what can be done now.

    `mpi` is the module `mpi4py.MPI`, `ranks` a communicator of it. All ranks begin this with the same `tag`, with
    which nothing else is under way among them. The array travels as `wire_dtype`, its own or bfloat16.
    """
    parts = np.array_split(array, ranks.size)
    yield from reduce_scatter(mpi, ranks, parts, tag, wire_dtype)
    yield from all_gather(mpi, ranks, parts, tag, wire_dtype)


def reduce_scatter(mpi: Any, ranks: Any, parts: Sequence[Array], tag: int, wire_dtype: np.dtype[Any]) -> Iterator[None]:
    """Replace this rank's of `parts`, one for each of `ranks`, by its sum over them, rounded as it would travel.

    Otherwise as `all_reduce`.
    """
    own = parts[ranks.rank]
    outgoing = [part.astype(wire_dtype, copy=False) for part in parts]
    terms = [np.empty(own.size, wire_dtype) for _ in parts]
    yield from _swap(mpi, ranks, outgoing, terms, tag)
    terms[ranks.rank] = own
    _add(terms, own)
    if own.dtype != wire_dtype:
        own[:] = own.astype(wire_dtype)


def all_gather(mpi: Any, ranks: Any, parts: Sequence[Array], tag: int, wire_dtype: np.dtype[Any]) -> Iterator[None]:
    """Replace each of `parts` by that of the rank to which it belongs. Otherwise as `all_reduce`."""
    outgoing = [parts[ranks.rank].astype(wire_dtype, copy=False)] * len(parts)
    compressed = parts[0].dtype != wire_dtype
    arriving = [np.empty(part.size, wire_dtype) for part in parts] if compressed else parts
    arriving = [*arriving[: ranks.rank], outgoing[0], *arriving[ranks.rank + 1 :]]
    yield from _swap(mpi, ranks, outgoing, arriving, tag)
    if compressed:
        for part, arrived in zip(parts, arriving, strict=True):
            part[:] = arrived


def _swap(mpi: Any, ranks: Any, outgoing: Sequence[Array], incoming: Sequence[Array], tag: int) -> Iterator[None]:
    """Send each rank its array of `outgoing`, and receive what it sends to its place in `incoming`."""
    peers = [rank for rank in range(ranks.size) if rank != ranks.rank]
    requests = [ranks.Irecv(incoming[peer].view(np.uint8), peer, tag) for peer in peers]
    requests += [ranks.Isend(outgoing[peer].view(np.uint8), peer, tag) for peer in peers]
    while not mpi.Request.Testall(requests):
        yield


def _add(terms: Sequence[Array], into: Array) -> None:
    """Put the sum of `terms`, as numbers of the type of `into`, into it, which is one of them."""
    for *block, into_block in sums.blocks([*terms, into]):
        wide = [term.astype(into.dtype, copy=False) for term in block]
        sums.reduce_in_place(wide)
        into_block[:] = wide[0]
