"""lucid: distributed data-parallel pretraining of BERT, with an autograd of its own, on NumPy and CuPy.

The face for programs: tensors, and the submodules, each imported when it is first used. Importing it starts nothing.
The command line is `lucid --help`.
"""

from typing import TYPE_CHECKING

from lucid.lazy import imported_on_use
from lucid.version import __version__

if TYPE_CHECKING:
    from lucid import autograd, data, distributed, models, nn, optim, random
    from lucid.autograd import Tensor, no_grad
    from lucid.autograd.tensor import tensor
    from lucid.random import manual_seed

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

__getattr__, __dir__ = imported_on_use(
    __name__,
    {
        "Tensor": "lucid.autograd",
        "autograd": "lucid.autograd",
        "data": "lucid.data",
        "distributed": "lucid.distributed",
        "manual_seed": "lucid.random",
        "models": "lucid.models",
        "nn": "lucid.nn",
        "no_grad": "lucid.autograd",
        "optim": "lucid.optim",
        "random": "lucid.random",
        "tensor": "lucid.autograd.tensor",
    },
)
