"""Data parallelism: the gradients of many ranks are those of one that sees the whole batch."""

import numpy as np
import pytest

import lucid
from lucid.backend import to_device, to_host
from lucid.distributed import DistributedDataParallel
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.nn import Embedding, LayerNorm, Linear, Module, ModuleList, functional

SAMPLES, WIDTH, VOCABULARY = 24, 8, 11


class Model(Module):
    """A tied embedding, a branch that only some inputs take, and a parameter that nothing uses."""

    def __init__(self, seed):
        lucid.manual_seed(seed)
        super().__init__()
        self.embedding = Embedding(VOCABULARY, WIDTH, deviation=1.0)
        self.first = Linear(WIDTH, WIDTH, deviation=0.3)
        self.norm = LayerNorm(WIDTH)
        self.rarely = Linear(WIDTH, WIDTH, deviation=0.3)
        self.never = Linear(WIDTH, WIDTH)
        self.head = Linear(WIDTH, VOCABULARY)
        self.head.weight = self.embedding.weight
        self.to(np.float64)

    def forward(self, ids, rarely=False):
        hidden = self.norm(self.first(self.embedding(ids)).tanh())
        return self.head(self.rarely(hidden) if rarely else hidden)


class Recording:
    """A communicator that records the sizes of the sums."""

    def __init__(self, communicator):
        self.communicator = communicator
        self.reduced = []

    def __getattr__(self, name):
        return getattr(self.communicator, name)

    def all_reduce(self, array):
        self.reduced.append(array.size)
        return self.communicator.all_reduce(array)


def batch(seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, SAMPLES)


def local_part(ids, group):
    """This rank's part of the samples, on the group's device."""
    return to_device(np.array_split(ids, group.size)[group.rank], group.device)


def loss_of(outputs):
    return (outputs * outputs).sum()


def gradients_of_one(state, *losses):
    """The gradients of all samples for a model with these weights."""
    model = Model(seed=0)
    model.load_state_dict(state)
    for ids, options in losses:
        loss_of(model(ids, **options)).backward()
    return {
        name: np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in model.named_parameters()
    }


def assert_gradients(ddp, expected):
    for name, parameter in ddp.module.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), expected[name], rtol=1e-11, atol=1e-11, err_msg=name)


@pytest.fixture(params=[1e-9, 0.0005, 25.0], ids=["bucket-per-parameter", "few-buckets", "one-bucket"])
def ddp(request, group):
    """The model on every rank; each rank starts with other weights."""
    return DistributedDataParallel(
        Model(seed=group.rank).to(group.device), Recording(group), bucket_megabytes=request.param
    )


def test_all_ranks_start_with_the_weights_of_the_first(ddp):
    expected = Model(seed=0).state_dict()
    for name, values in ddp.module.state_dict().items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_the_gradients_are_those_of_one_process(ddp, group):
    for step in range(3):
        ddp.zero_grad()
        loss_of(ddp(local_part(batch(step), group))).backward()
        assert_gradients(ddp, gradients_of_one(ddp.module.state_dict(), (batch(step), {})))


def test_ranks_may_reach_different_parameters(ddp, group):
    rarely = group.rank == group.size - 1
    loss_of(ddp(local_part(batch(), group), rarely=rarely)).backward()
    parts = [
        (part, {"rarely": rank == group.size - 1}) for rank, part in enumerate(np.array_split(batch(), group.size))
    ]
    assert_gradients(ddp, gradients_of_one(ddp.module.state_dict(), *parts))


def test_accumulation_adds_up_and_communicates_once(ddp, group):
    for micro_batch in range(3):
        if micro_batch < 2:
            with ddp.accumulate():
                # Only the first micro-batch reaches this branch: its gradients must be summed too.
                loss_of(ddp(local_part(batch(micro_batch), group), rarely=micro_batch == 0)).backward()
            assert ddp.partition._communicator.reduced == []
        else:
            loss_of(ddp(local_part(batch(micro_batch), group))).backward()
    assert len(ddp.partition._communicator.reduced) == len(ddp.partition.buckets)
    everything = [(batch(micro_batch), {"rarely": micro_batch == 0}) for micro_batch in range(3)]
    assert_gradients(ddp, gradients_of_one(ddp.module.state_dict(), *everything))


def test_an_exception_within_accumulate_ends_it(ddp, group):
    with pytest.raises(KeyError), ddp.accumulate():
        raise KeyError
    loss_of(ddp(local_part(batch(), group))).backward()
    assert ddp.partition._communicator.reduced


def test_every_gradient_is_in_one_bucket(ddp, group):
    loss_of(ddp(local_part(batch(), group))).backward()
    assert sum(ddp.partition._communicator.reduced) >= sum(
        segment.stop - segment.start for segment in ddp.flat.segments
    )
    assert sum(ddp.partition._communicator.reduced) <= len(ddp.flat.gradients)


class Chain(Module):
    """Layers in sequence; backward passes the last one first."""

    def __init__(self):
        super().__init__()
        self.layers = ModuleList([Linear(WIDTH, WIDTH) for _ in range(3)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def launched_when_ready(model, x, watched):
    """The number of sums under way when `watched` becomes ready; each parameter is a bucket."""
    communicator = Recording(SingleCommunicator())
    ddp = DistributedDataParallel(model, communicator, bucket_megabytes=1e-9)
    launched = []
    watched.add_ready_hook(lambda: launched.append(len(communicator.reduced)))
    loss_of(ddp(x)).backward()
    return launched


def test_a_bucket_is_launched_as_soon_as_it_is_ready():
    chain = Chain()
    # The weights of the last layer and of this one are under way: the reduction's hook runs before the test's.
    assert launched_when_ready(chain, np.ones((4, WIDTH), np.float32), chain.layers[1].weight) == [2]


def test_no_bucket_overtakes_one_that_is_not_ready():
    model = Model(seed=0)
    # The weight of `never` comes first in the buffer, so that no sum starts before the end of backward.
    assert launched_when_ready(model, batch(), model.embedding.weight) == [0]


class Pair(Module):
    """Two layers of the same input, whose parameters are joined."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Linear(WIDTH, WIDTH), Linear(WIDTH, WIDTH)
        self.join(self.one.weight, self.two.weight)
        self.join(self.one.bias, self.two.bias)

    def forward(self, x):
        return functional.joined_linear(x, *((layer.weight, layer.bias) for layer in (self.one, self.two)))


class Keeping(Recording):
    """A communicator that keeps the arrays of its sums, and copies of them."""

    def __init__(self, communicator):
        super().__init__(communicator)
        self.kept = []

    def all_reduce(self, array):
        self.kept.append((array, array.copy()))
        return super().all_reduce(array)


def test_a_bucket_may_end_between_joined_parameters():
    pair, communicator = Pair(), Keeping(SingleCommunicator())
    ddp = DistributedDataParallel(pair, communicator, bucket_megabytes=1e-9)
    loss_of(ddp(np.ones((4, WIDTH), np.float32))).backward()
    assert len(communicator.kept) == len(list(pair.parameters()))
    for array, when_sent in communicator.kept:
        np.testing.assert_array_equal(array, when_sent)
    assert all(parameter.grad.numpy().any() for parameter in pair.parameters())


def test_the_wrapper_renames_nothing(ddp):
    assert {segment.name for segment in ddp.flat.segments} == dict(Model(seed=0).named_parameters()).keys()


def test_an_interrupted_backward_does_not_count_as_a_whole_one(group):
    ddp = DistributedDataParallel(Model(seed=0).to(group.device), group)

    def interrupt():
        raise KeyboardInterrupt

    ids = local_part(batch(), group)
    loss = loss_of(ddp(ids))
    ddp.module.first.bias.add_ready_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    ddp.module.first.bias._ready_hooks.remove(interrupt)
    with pytest.raises(RuntimeError, match="interrupted"):
        loss_of(ddp(ids)).backward()
    with pytest.raises(RuntimeError, match="interrupted"):
        ddp.zero_grad()


def test_communication_may_wait_until_backward_is_over(group):
    """The order and the sums are the same."""
    x, kept = to_device(np.full((2, WIDTH), group.rank + 1, np.float32), group.device), []
    at_once, later = (DistributedDataParallel(Chain().to(group.device), group, bucket_megabytes=0.0005) for _ in "ab")
    later.module.load_state_dict(at_once.module.state_dict())
    for _ in range(2):
        for ddp in (at_once, later):
            ddp.zero_grad()
        loss_of(at_once(lucid.tensor(x))).backward()
        with later.collectives_run_by(kept.append):
            loss_of(later(lucid.tensor(x))).backward()
        assert len(kept) > 2
        for action in kept:
            action()
        kept.clear()
        np.testing.assert_array_equal(to_host(later.flat.gradients), to_host(at_once.flat.gradients))
