"""Attention."""

from typing import Any, Protocol

from lucid.backend import Array
from lucid.kernels.arguments import Dropout
from lucid.kernels.sequences import Sequences


class AttentionKernels(Protocol):
    def attention(self, joined: Array, sequences: Sequences, heads: int, dropout: Dropout) -> tuple[Array, Any]:
        """Compute scaled dot-product attention (Vaswani et al., 2017), split into heads, of each sequence to itself.

        Query, key and value lie side by side in `joined` [N, 3C], perhaps a `product_input`. Rows in `sequences.mask`
        count as keys. The probabilities pass through dropout, whose coordinates are those of the rows: row i and key j
        of head h draw element (h * T + i) * T + j of the sample, where i and j are positions in it.

        Return (output [N, C] in the dtype of `joined`, the state that `attention_gradient` needs). The state is either
        the probabilities before dropout, [H, L, L] for each sequence of length L, concatenated into [P]; or the output,
        the logarithm of the sum of exponentials of each row, and one bit for each probability that dropout keeps.
        """

    def attention_gradient(
        self, gradient: Array, joined: Array, saved: Any, sequences: Sequences, heads: int, dropout: Dropout
    ) -> Array:
        """Return the gradient of `attention` by `joined`, in its dtype, for gradient [N, C], perhaps a `product_input`.

        `saved` is the state that `attention` returned.
        """
