"""Reverse-mode differentiation over arrays: tensors, their operations, and the engine that walks the graph."""

from lucid.autograd.tensor import Tensor, cat  # isort: skip  # first: the other modules import it
from lucid.autograd.engine import after_backward
from lucid.autograd.function import Deferred, Function, no_grad
from lucid.autograd.recomputation import recompute

__all__ = ["Deferred", "Function", "Tensor", "after_backward", "cat", "no_grad", "recompute"]
