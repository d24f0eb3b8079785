"""lucid: distributed data-parallel pretraining of BERT, with an autograd of its own, on NumPy and CuPy.

The face for programs: tensors, and the submodules. Importing it starts nothing. The command line is `lucid --help`.
"""

from lucid import autograd, data, distributed, models, nn, optim, random
from lucid.autograd import Tensor, no_grad
from lucid.autograd.tensor import tensor
from lucid.random import manual_seed
from lucid.version import __version__

__all__ = [
    "Tensor",
    "__version__",
    "autograd",
    "data",
    "distributed",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "optim",
    "random",
    "tensor",
]
