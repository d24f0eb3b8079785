"""lucid: distributed data-parallel pretraining of BERT."""

from lucid import autograd, nn, random
from lucid.autograd import Tensor, no_grad
from lucid.autograd.tensor import tensor
from lucid.random import manual_seed

__all__ = ["Tensor", "autograd", "manual_seed", "nn", "no_grad", "random", "tensor"]
