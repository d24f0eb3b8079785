"""One vector of each sequence, from the hidden states of its tokens."""

from typing import Literal, get_args

import numpy as np

from lucid import kernels
from lucid.backend import Array, array_module, device_of, to_device, to_host
from lucid.kernels.sequences import Sequences

# The mean of all tokens, [CLS] and [SEP] included; or the first token, which is [CLS].
Pooling = Literal["mean", "first"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pooled(hidden: Array, sequences: Sequences, pooling: Pooling) -> np.ndarray:
    """Return the vectors of S sequences, in host memory, from hidden states [N, C] on any device: float32 [S, C].

    None of the sequences may be empty, or have a mask. Both are those of sentence-transformers (Reimers & Gurevych,
    "Sentence-BERT", 2019).
    """
    if pooling == "first":
        return to_host(kernels.of(hidden).embedding(hidden, sequences.first_rows)).astype(np.float32, copy=False)
    lengths = np.diff(sequences.bounds)
    numbers = to_device(np.arange(sequences.count).repeat(lengths), device_of(hidden))
    sums = array_module(hidden).zeros((sequences.count, hidden.shape[1]), np.float32)
    # The gradient of a look-up adds the rows of each number in a fixed order, which is what a sum by sequence is.
    kernels.of(hidden).embedding_gradient(hidden, numbers, sums, False, None)
    return to_host(sums) / lengths[:, None].astype(np.float32)
