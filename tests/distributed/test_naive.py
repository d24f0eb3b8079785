"""The naive version of data parallelism gives the gradients of the real one."""

from contextlib import nullcontext

import numpy as np
import pytest

import lucid
from lucid.backend import to_device
from lucid.distributed import DistributedDataParallel
from lucid.distributed.parallel.naive import NaiveDataParallel
from lucid.nn import Embedding, Linear, Module

SAMPLES, WIDTH, VOCABULARY = 24, 8, 11


class Model(Module):
    """A tied embedding, a branch that some ranks do not take, and a parameter that nothing uses."""

    def __init__(self, seed):
        lucid.manual_seed(seed)
        super().__init__()
        self.embedding = Embedding(VOCABULARY, WIDTH, deviation=1.0)
        self.layer = Linear(WIDTH, WIDTH, deviation=0.3)
        self.branch = Linear(WIDTH, WIDTH, deviation=0.3)
        self.unused = Linear(WIDTH, WIDTH)
        self.head = Linear(WIDTH, VOCABULARY)
        self.head.weight = self.embedding.weight

    def forward(self, ids, branch):
        hidden = self.layer(self.embedding(ids)).tanh()
        return self.head(self.branch(hidden) if branch else hidden)


def backward(parallel, group, step=0):
    ids = np.array_split(np.random.default_rng(step).integers(0, VOCABULARY, SAMPLES), group.size)[group.rank]
    outputs = parallel(to_device(ids, group.device), branch=group.rank == 0)
    (outputs * outputs).sum().backward()


def assert_same(naive, real, group):
    for (name, parameter), other in zip(naive.module.named_parameters(), real.module.parameters(), strict=True):
        got, expected = parameter.grad.numpy(), other.grad.numpy()
        if group.size <= 2:  # the sum of two numbers has the same bits in either order
            np.testing.assert_array_equal(got, expected, err_msg=name)
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("options", [{}, {"exact_micro_batches": 1}], ids=["fast", "exact"])
def test_the_naive_gradients_are_those_of_the_real_version(group, options):
    if options and group.size & (group.size - 1):
        pytest.skip("not a power of two")
    naive = NaiveDataParallel(Model(seed=group.rank).to(group.device), group)
    real = DistributedDataParallel(Model(seed=group.rank).to(group.device), group, **options)
    backward(naive, group)
    naive.sum_gradients()
    backward(real, group)
    assert_same(naive, real, group)


def test_after_several_micro_batches_they_are_too(group):
    naive = NaiveDataParallel(Model(seed=group.rank).to(group.device), group)
    real = DistributedDataParallel(Model(seed=group.rank).to(group.device), group)
    for step in range(3):
        backward(naive, group, step)
        with real.accumulate() if step < 2 else nullcontext():
            backward(real, group, step)
    naive.sum_gradients()
    assert_same(naive, real, group)


def test_all_ranks_start_with_the_weights_of_the_first(group):
    naive = NaiveDataParallel(Model(seed=group.rank).to(group.device), group)
    for name, values in Model(seed=0).state_dict().items():
        np.testing.assert_array_equal(naive.module.state_dict()[name], values, err_msg=name)
