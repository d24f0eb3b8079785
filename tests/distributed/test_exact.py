"""The exact reduction gives the same bits on any number of ranks: they all add along one tree."""

import numpy as np
import pytest

import lucid
from lucid.backend import to_device, to_host
from lucid.distributed import DistributedDataParallel
from lucid.distributed.parallel import exact
from lucid.errors import ConfigError
from lucid.nn import Linear, Module

WIDTH, MICRO_BATCHES = 5, 8


def tree_sum(leaves):
    """The definition: a node adds its two halves, split at the midpoint."""
    if len(leaves) == 1:
        return leaves[0]
    middle = len(leaves) // 2
    return tree_sum(leaves[:middle]) + tree_sum(leaves[middle:])


class Model(Module):
    def __init__(self):
        super().__init__()
        lucid.manual_seed(0)
        self.first = Linear(WIDTH, WIDTH, deviation=1.0)
        self.second = Linear(WIDTH, WIDTH, deviation=1.0)
        self.never = Linear(WIDTH, WIDTH)

    def forward(self, inputs):
        return self.second(self.first(inputs).tanh())


def inputs_of(micro_batch):
    return np.random.default_rng(micro_batch).standard_normal((3, WIDTH)).astype(np.float32) * 10.0 ** (micro_batch % 5)


def backward(model, micro_batch):
    outputs = model(lucid.tensor(to_device(inputs_of(micro_batch), model.device)))
    (outputs * outputs).sum().backward()


def gradients_of(micro_batch, device):
    """The gradients of one micro-batch alone, by name."""
    model = Model().to(device)
    backward(model, micro_batch)
    return {
        name: np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in model.named_parameters()
    }


def take_step(ddp, micro_batches):
    ddp.zero_grad()
    for micro_batch in micro_batches[:-1]:
        with ddp.accumulate():
            backward(ddp.module, micro_batch)
    backward(ddp.module, micro_batches[-1])


def assert_bits(ddp, micro_batches):
    alone = [gradients_of(micro_batch, ddp.module.device) for micro_batch in micro_batches]
    for name, parameter in ddp.module.named_parameters():
        expected = tree_sum([gradients[name] for gradients in alone])
        np.testing.assert_array_equal(parameter.grad.numpy(), expected, err_msg=name)


@pytest.mark.parametrize("leaves", range(1, 18))
def test_additions_follow_leaves_in_the_order_of_the_tree(leaves):
    stack = []
    for leaf in range(leaves):
        stack.append([leaf])
        for _ in range(exact.completed(leaf, leaves)):
            right = stack.pop()
            stack[-1] = [stack[-1], right]
        # The leaf that is being computed needs a buffer too.
        assert len(stack) + (leaf < leaves - 1) <= exact.buffers_needed(leaves)

    def node(start, stop):
        middle = (start + stop) // 2
        return [start] if stop - start == 1 else [node(start, middle), node(middle, stop)]

    assert stack == [node(0, leaves)]


@pytest.mark.parametrize("leaves", [1, 2, 3, 6, 7, 8])
def test_the_micro_batches_of_one_rank_are_summed_along_the_tree(leaves, communicator):
    ddp = DistributedDataParallel(Model(), communicator, exact_micro_batches=leaves)
    for first in (0, 3):
        take_step(ddp, range(first, first + leaves))
        assert_bits(ddp, range(first, first + leaves))
    assert len(ddp._reduction._free) + 1 <= exact.buffers_needed(leaves)


@pytest.mark.parametrize("bucket_megabytes", [1e-9, 0.0001, 25.0])
def test_ranks_share_one_tree(group, bucket_megabytes):
    if MICRO_BATCHES % group.size:
        pytest.skip("the tree cannot be shared out evenly")
    leaves = MICRO_BATCHES // group.size
    ddp = DistributedDataParallel(Model().to(group.device), group, bucket_megabytes, exact_micro_batches=leaves)
    for first in (0, 3):
        take_step(ddp, range(first + group.rank * leaves, first + (group.rank + 1) * leaves))
        assert_bits(ddp, range(first, first + MICRO_BATCHES))


@pytest.mark.parametrize("elements", [1, 2, 7, 1000])
def test_arrays_of_any_length_are_summed_along_the_tree(group, elements):
    if group.size & (group.size - 1):
        pytest.skip("not a power of two")
    arrays = [np.random.default_rng(rank).standard_normal(elements).astype(np.float32) for rank in range(group.size)]
    total = to_device(arrays[group.rank].copy(), group.device)
    exact.all_reduce(group, total, to_device(np.empty((elements + 1) // 2, np.float32), group.device))
    np.testing.assert_array_equal(to_host(total), tree_sum(arrays))


def test_another_number_of_backward_passes_is_refused(communicator):
    ddp = DistributedDataParallel(Model(), communicator, exact_micro_batches=2)
    ddp.zero_grad()
    with pytest.raises(RuntimeError, match="2 backward passes"):
        backward(ddp.module, 0)


def test_a_step_after_an_interrupted_backward_is_refused(communicator):
    ddp = DistributedDataParallel(Model(), communicator, exact_micro_batches=1)
    ddp.zero_grad()
    (first, *_) = ddp.module.parameters()
    first.add_ready_hook(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        backward(ddp.module, 0)
    with pytest.raises(RuntimeError, match="an earlier backward was interrupted"):
        ddp.zero_grad()


@pytest.mark.mpi(min_size=3)
def test_a_number_of_ranks_that_is_no_power_of_two_is_refused(communicator):
    if communicator.size & (communicator.size - 1) == 0:
        pytest.skip("a power of two")
    with pytest.raises(ConfigError, match="1, 2, 4, 8"):
        DistributedDataParallel(Model(), communicator, exact_micro_batches=1)
