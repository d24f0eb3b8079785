"""A GPU repeats captured optimizer steps and embedding gradients on other numbers."""

import ml_dtypes
import numpy as np
import pytest

from lucid import backend, kernels, nn
from lucid.optim import LAMB, AdamW, OneProcess, clip_scale, global_norm

RANDOM = np.random.default_rng()


class Layers(nn.Module):
    """Parameters with weight decay, of several blocks, and without."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(300, 150), nn.Linear(150, 7)


class Stepped:
    """Layers on the GPU whose optimizer reads the gradient and the learning rate from its memory."""

    def __init__(self, optimizer, weights, device):
        layers = Layers().to(device)
        layers.load_state_dict(weights)
        self.device = device
        self.flat = nn.flatten(layers, bfloat16_copy=True)
        self.optimizer = optimizer(OneProcess(self.flat))
        self.learning_rate = backend.to_device(np.zeros(()), device)

    def set(self, learning_rate, gradient):
        self.learning_rate[...] = learning_rate
        self.flat.gradients[...] = backend.to_device(gradient, self.device)

    def step(self):
        norm = global_norm(self.optimizer.partition)
        self.optimizer.step(self.learning_rate, clip_scale(norm, 1.0))
        return norm

    def state(self):
        arrays = self.flat.values, self.flat.bfloat16_copy, self.optimizer.first_moments, self.optimizer.second_moments
        return [*map(backend.to_host, arrays), self.optimizer.updates]


@pytest.fixture
def capture(machine):
    """A function that runs another one, then captures it, and returns the graph and the function's result."""
    import cupy

    # Kept until the test is over: the graph works in its memory. A launch follows what the default stream was given.
    pool, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream()

    def captured(function):
        with cupy.cuda.using_allocator(pool.malloc), stream:
            function()
            stream.begin_capture()
            result = function()
            graph = stream.end_capture()
        return lambda: (graph.launch(stream), stream.synchronize()), result

    return captured


@pytest.mark.parametrize("optimizer", [AdamW, LAMB])
def test_a_captured_step_equals_a_step(machine, capture, optimizer):
    weights = Layers().state_dict()
    eager, replayed = (Stepped(optimizer, weights, machine.device) for _ in range(2))
    count = len(eager.flat.values)
    # Running it before the capture changes nothing with such a gradient.
    replayed.set(1.0, np.full(count, np.nan, np.float32))
    launch, norm = capture(replayed.step)
    for step, bad in enumerate([False, True, False, False]):
        gradient = RANDOM.standard_normal(count, dtype=np.float32)
        if bad:
            gradient[count // 2] = np.inf
        for stepped in (eager, replayed):
            stepped.set(1e-2 * (step + 1), gradient)
        expected_norm = eager.step()
        launch()
        np.testing.assert_array_equal(machine.get(norm), machine.get(expected_norm))
        for got, expected in zip(replayed.state(), eager.state(), strict=True):
            np.testing.assert_array_equal(got, expected)
    assert replayed.optimizer.updates == 3
    np.testing.assert_array_equal(replayed.state()[1], replayed.state()[0].astype(ml_dtypes.bfloat16))


def test_a_captured_embedding_gradient_follows_its_ids(machine, capture, element):
    ids, gradient = machine.put(np.zeros(90, np.int64)), machine.put(np.zeros((90, 12), element))
    table = machine.put(np.zeros((300, 12), np.float32))
    kernel = kernels.of(gradient)
    launch, _ = capture(lambda: kernel.embedding_gradient(gradient, ids, table, False, 5))
    for bound in (7, 300):
        new_ids, rows = RANDOM.integers(0, bound, 90), RANDOM.integers(-3, 4, (90, 12))
        ids[...], gradient[...] = machine.put(new_ids), machine.put(rows.astype(element))
        launch()
        expected = np.zeros((300, 12))
        np.add.at(expected, new_ids, rows)
        expected[5] = 0
        np.testing.assert_array_equal(machine.get(table), expected)


@pytest.mark.parametrize("optimizer", [AdamW, LAMB])
def test_moments_are_restored_from_and_saved_to_host_memory(machine, optimizer):
    weights = Layers().state_dict()
    source, target = (Stepped(optimizer, weights, machine.device) for _ in range(2))
    source.set(1e-2, RANDOM.standard_normal(len(source.flat.values), dtype=np.float32))
    source.step()
    state = source.optimizer.moments()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    target.optimizer.restore(target.optimizer.lay_out(state.__getitem__), source.optimizer.updates)
    assert target.optimizer.updates == 1
    for name, moments in target.optimizer.moments().items():
        np.testing.assert_array_equal(moments, state[name])
