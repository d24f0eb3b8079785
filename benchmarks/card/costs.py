"""What a launch on the card costs at least: the bytes that it reads and writes, its floating-point operations, and its
instructions where these are much else, as in attention that drops.

A kernel reads or writes each array once, unless a table here says otherwise. Caches are taken to be empty. Arithmetic
counts in products and in attention alone. A kernel that no table names is marked as unknown.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Arguments = tuple[Any, ...]

# Kernels all of whose arrays are read, or written, once.
ORDINARY = {
    "gelu", "gelu_gradient", "gelu_new", "gelu_new_gradient", "relu", "relu_gradient", "dropout",
    "normalise", "normalise_gradient", "cross_entropy", "cross_entropy_gradient", "argmax",
    "column_sums", "block_sums", "squared_sums", "root_of_sum", "round_to_bfloat16", "update_factors", "lamb_rates",
    "count_digits", "place_by_digit",
}  # fmt: skip
# The places of arguments that are read and written.
UPDATED = {"adamw": (0, 2, 3), "lamb_moments": (2, 3), "lamb_update": (0,)}
# The place of a table, and how many of its rows are touched at most.
ROWS_TOUCHED: dict[str, tuple[int, Callable[[Arguments], int]]] = {
    "look_up": (0, lambda given: given[1].size),
    "add_within_chunks": (4, lambda given: given[1].size),
    "add_across_chunks": (2, lambda given: len(given[3])),
}
# The place of an argument of which only some columns are written, and their share.
WRITTEN_IN_PART = {"attention_query_gradient": (11, 1 / 3), "attention_key_value_gradient": (11, 2 / 3)}
# The place of what attention's dropout keeps: there is room for 16 rows at [1], and as many are used as rows fill.
KEPT = {"attention": 6, "attention_query_gradient": 7, "attention_key_value_gradient": 7}
# How many products of queries, keys, values, scores and their gradients a kernel of attention makes.
PRODUCTS_OF_ATTENTION = {"attention": 2, "attention_query_gradient": 3, "attention_key_value_gradient": 4}
# The instructions of the inner loop, with dropout and without a mask of keys, that a warp executes for one score: by
# nvdisasm, of what NVRTC makes for sm_90 and heads of 64, for 16 rows and 64 or 32 keys.
INSTRUCTIONS_OF_SCORE = {
    "attention": 1008 / (16 * 64),
    "attention_query_gradient": 306 / (16 * 32),
    "attention_key_value_gradient": 547 / (16 * 32),
}
KNOWN = ORDINARY | UPDATED.keys() | ROWS_TOUCHED.keys() | PRODUCTS_OF_ATTENTION.keys()

Kind = Literal["product", "kernel", "CuPy", "copy"]


@dataclass(frozen=True)
class Launch:
    """Something that the card is asked to do: `over` says what it is done to, or where it is asked for."""

    kind: Kind
    name: str
    over: str
    bytes: int
    flops: int = 0
    instructions: float = 0.0
    is_known: bool = True


@dataclass(frozen=True)
class Rates:
    """What the card does in a second: bytes of a copy, FLOPs of a large product, instructions of warps that begin."""

    bytes: float
    flops: float
    instructions: float

    def seconds(self, launches: Iterable[Launch], least: float = 0.0) -> float:
        """Return what launches take at these rates, each what takes longest of it, and none less than `least`."""
        return math.fsum(
            max(least, each.bytes / self.bytes, each.flops / self.flops, each.instructions / self.instructions)
            for each in launches
        )


def kernel(element: str, name: str, given: Arguments, flops_of_product: int) -> Launch:
    """Return the launch of one of lucid's kernels; a product in attention takes `flops_of_product`."""
    arrays = {number: each for number, each in enumerate(given) if not isinstance(each, np.generic)}
    seen: dict[tuple[int, int], int] = {}
    for number, array in arrays.items():
        seen[address(array), array.nbytes] = bytes_moved(name, number, array, given)
    largest = max(arrays.values(), key=lambda each: each.nbytes)
    flops = PRODUCTS_OF_ATTENTION.get(name, 0) * flops_of_product
    instructions = INSTRUCTIONS_OF_SCORE.get(name, 0) * scores_kept(name, given)
    over = f"{element} {shape(largest)}"
    return Launch("kernel", name, over, sum(seen.values()), flops, instructions, name in KNOWN)


def bytes_moved(name: str, number: int, array: Any, given: Arguments) -> int:
    """Return how many bytes of an argument a kernel moves."""
    table, rows = ROWS_TOUCHED.get(name, (None, len))
    if number == table:
        return min(array.nbytes, rows(given) * array.nbytes // len(array))
    place, share = WRITTEN_IN_PART.get(name, (None, 1))
    if number == place:
        return round(array.nbytes * share)
    if number == KEPT.get(name):
        return scores_kept(name, given) // 8
    return array.nbytes * (2 if number in UPDATED.get(name, ()) else 1)


def scores_kept(name: str, given: Arguments) -> int:
    """Return of how many scores attention keeps whether they are dropped: a bit for each. 0 where nothing drops."""
    kept = given[KEPT[name]] if name in KEPT else None
    return 0 if kept is None else 8 * kept.nbytes * min(kept.shape[1], -(-len(given[0]) // 16)) // kept.shape[1]


def product(operations: tuple[int, int], first: Any, second: Any, out: Any, addend: Any, vector: Any) -> Launch:
    """Return the launch of a product as cuBLASLt sees it: `out` [n, m] of ours, added up over k."""
    n, m = out.shape
    # The first factor lies as [m, k] where it is transposed, as we see it, and else as [k, m].
    k = first.shape[1 if operations[0] else 0]
    moved = sum(each.nbytes for each in (first, second, out, addend, vector) if each is not None)
    added = "" if addend is None else " added to"
    return Launch("product", "product", f"{n} x {m} x {k}{added} {out.dtype}", moved, 2 * m * n * k)


def shape(array: Any) -> str:
    return f"[{', '.join(map(str, array.shape))}]"


def address(array: Any) -> int:
    return array.data.ptr
