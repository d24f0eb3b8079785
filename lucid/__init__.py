"""lucid: distributed data-parallel pretraining of BERT."""

from lucid import autograd, models, nn, optim, random
from lucid.autograd import Tensor, no_grad
from lucid.autograd.tensor import tensor
from lucid.random import manual_seed

__all__ = ["Tensor", "autograd", "manual_seed", "models", "nn", "no_grad", "optim", "random", "tensor"]
