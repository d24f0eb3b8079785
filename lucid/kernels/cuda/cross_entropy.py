"""Cross-entropy, and the most probable id, over a wide vocabulary."""

import numpy as np

from lucid.backend import Array, array_module
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.arrays import as_rows, empty, parameter, plain
from lucid.kernels.cuda.compiling import Variant, variant
from lucid.kernels.cuda.launching import is_aligned, vector_width

_THREADS = 512


def form(element: str, vector: int) -> Variant:
    """Return the program of these kernels."""
    return variant("cross_entropy", element, vector, THREADS=_THREADS)


def cross_entropy(
    logits: Array, labels: Array, ignore_index: int, vocabulary: int | None = None
) -> tuple[Array, Array]:
    logits = plain(logits)
    losses, log_sum = empty(logits, len(logits)), empty(logits, len(logits))
    inputs = logits, _labels(labels, logits), np.int64(ignore_index)
    _launch("cross_entropy", logits, *inputs, losses, log_sum, *_widths(logits, vocabulary))
    return losses, log_sum


def cross_entropy_gradient(
    gradient: Array,
    logits: Array,
    labels: Array,
    log_sum: Array,
    ignore_index: int,
    vocabulary: int | None = None,
) -> Array:
    logits = plain(logits)
    y = array_module(logits).empty_like(logits)
    inputs = parameter(gradient), logits, _labels(labels, logits), parameter(log_sum), np.int64(ignore_index)
    _launch("cross_entropy_gradient", logits, *inputs, y, *_widths(logits, vocabulary))
    return y


def argmax(x: Array, vocabulary: int | None = None) -> Array:
    rows = as_rows(x)
    columns = empty(x, len(rows), dtype=np.int64)
    _launch("argmax", rows, rows, columns, *_widths(rows, vocabulary))
    return columns.reshape(x.shape[:-1])


def _launch(kernel: str, rows: Array, *arguments: Array | np.generic) -> None:
    """Start a kernel with one block of threads for each of the rows."""
    launching.launch(form(rows.dtype.name, _vector(rows)), kernel, (len(rows),), (_THREADS,), *arguments)


def _widths(rows: Array, vocabulary: int | None) -> tuple[np.int32, np.int32]:
    """Return the number of columns, and of those that count."""
    width = rows.shape[1]
    return np.int32(width), np.int32(width if vocabulary is None else vocabulary)


def _vector(logits: Array) -> int:
    """Return how many logits a thread reads at once: at least two in rows of even width, such as BERT's 30,522."""
    vector, width = vector_width(logits.shape[1], logits), logits.shape[1]
    return 2 if vector == 1 and width % 2 == 0 and is_aligned(logits) else vector


def _labels(labels: Array, like: Array) -> Array:
    return plain(array_module(like).asarray(labels), np.int64)
