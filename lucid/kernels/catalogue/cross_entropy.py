"""Cross-entropy, and the most probable id, over a wide vocabulary."""

from typing import Protocol

from lucid.backend import Array


class CrossEntropyKernels(Protocol):
    """With `vocabulary`, rows have W columns, of which the first V count; the others align the rows in memory."""

    def cross_entropy(
        self, logits: Array, labels: Array, ignore_index: int, vocabulary: int | None = None
    ) -> tuple[Array, Array]:
        """Return (losses [N], log of the sum of exponentials [N]) of logits [N, V] at labels [N] (integers).

        The loss of a row with the label `ignore_index` is 0.
        """

    def cross_entropy_gradient(
        self,
        gradient: Array,
        logits: Array,
        labels: Array,
        log_sum: Array,
        ignore_index: int,
        vocabulary: int | None = None,
    ) -> Array:
        """Return the gradient of `cross_entropy` by logits, for gradient [N] by the losses.

        The gradient of columns that do not count is 0.
        """

    def argmax(self, x: Array, vocabulary: int | None = None) -> Array:
        """Return the column of the greatest number in each row of x [..., V], the first of equals: int64 [...]."""
