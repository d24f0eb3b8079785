"""Look-ups in a table of embeddings."""

from typing import Protocol

from lucid.backend import Array


class EmbeddingKernels(Protocol):
    def embedding(self, table: Array, ids: Array, addend: Array | None = None) -> Array:
        """Return the rows of table [V, C] at ids [...] (integers in [0, V)), plus `addend` [..., C] if given."""

    def embedding_gradient(
        self, gradient: Array, ids: Array, out: Array, accumulate: bool, padding_id: int | None
    ) -> None:
        """Write (or add) to out [V, C] each row of gradient [..., C] at its id [...], in a fixed order.

        Rows with the id `padding_id` do not count.
        """
