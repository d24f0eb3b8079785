"""Flat buffers: the layout that communication and optimizers rely on."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

import lucid
from lucid import nn
from lucid.backend import as_one
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import Parameter, flatten
from lucid.optim import LAMB, AdamW, OneProcess

CONFIG = BERTConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=8,
)
BATCH = {
    "input_ids": np.array([[1, 5, 6, 2]]),
    "mlm_labels": np.array([[-100, 5, -100, -100]]),
    "nsp_labels": np.array([1]),
}


@pytest.fixture
def model():
    lucid.manual_seed(0)
    return BERTForPreTraining(CONFIG)


def test_values_move_and_backward_writes_into_the_gradient_buffer(model):
    before = {name: array.copy() for name, array in model.state_dict().items()}
    flat = flatten(model)
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.data, before[name])
        assert np.shares_memory(parameter.data, flat.values)
    model.eval().get_loss(**BATCH).backward()
    for name, gradient in flat.views(flat.gradients).items():
        parameter = dict(model.named_parameters())[name]
        assert np.shares_memory(parameter.grad.numpy(), flat.gradients)
        np.testing.assert_array_equal(parameter.grad.numpy(), gradient)


def test_flat_gradients_equal_those_of_a_model_without_flat_buffers(model):
    model.eval().get_loss(**BATCH).backward()
    expected = {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}
    lucid.manual_seed(0)
    other = BERTForPreTraining(CONFIG).eval()
    flat = flatten(other)
    flat.gradients[:] = np.nan
    other.get_loss(**BATCH).backward()
    for name, gradient in flat.views(flat.gradients).items():
        # Query, key and value are one product here, and three there.
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-7)


def test_segments_are_aligned_and_in_reverse_order_with_the_word_embedding_last_of_those_with_decay(model):
    flat = flatten(model)
    first = [segment for segment in flat.segments if ".key." not in segment.name and ".value." not in segment.name]
    assert all(segment.start * flat.values.itemsize % 256 == 0 for segment in first)
    with_decay = [segment.name for segment in flat.segments if segment.decay]
    without = [segment.name for segment in flat.segments if not segment.decay]
    assert [segment.name for segment in flat.segments] == with_decay + without
    assert with_decay[0] == "cls.seq_relationship.weight"
    assert with_decay[-1] == "bert.embeddings.word_embeddings.weight"
    assert all(name.endswith("bias") or "LayerNorm" in name for name in without)
    assert flat.segments[len(with_decay)].start == flat.decay_stop


def test_the_backward_after_zero_grad_overwrites_gradients(model):
    flat = flatten(model)
    model.eval().get_loss(**BATCH).backward()
    once = flat.gradients.copy()
    flat.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    model.get_loss(**BATCH).backward()
    np.testing.assert_array_equal(flat.gradients, once)
    model.get_loss(**BATCH).backward()
    np.testing.assert_allclose(flat.gradients, 2 * once, rtol=1e-6)


def test_gradients_that_backward_did_not_reach_are_zeroed_on_request(model):
    flat = flatten(model)
    flat.gradients[:] = 7
    model.eval().get_mlm_loss(BATCH["mlm_labels"], BATCH["input_ids"]).backward()
    flat.zero_unset_gradients()
    views = flat.views(flat.gradients)
    assert not views["cls.seq_relationship.weight"].any()
    assert views["bert.embeddings.word_embeddings.weight"].any()


def test_the_tied_embedding_is_ready_once_and_last_of_its_region(model):
    order = []
    flat = flatten(model)
    for segment, parameter in zip(flat.segments, flat.parameters, strict=True):
        parameter.add_ready_hook(lambda name=segment.name: order.append(name))
    model.eval().get_loss(**BATCH).backward()
    assert sorted(order) == sorted(segment.name for segment in flat.segments)
    decaying = {segment.name for segment in flat.segments if segment.decay}
    tied = "bert.embeddings.word_embeddings.weight"
    assert order.index(tied) > max(order.index(name) for name in decaying if ".layer." in name or "cls" in name)


class TestJoined:
    """Parameters that are laid one behind the other."""

    def test_query_key_and_value_are_adjacent_in_every_buffer(self, model):
        flat = flatten(model, bfloat16_copy=True)
        for number in range(CONFIG.num_hidden_layers):
            for kind in ("weight", "bias"):
                names = [
                    f"bert.encoder.layer.{number}.attention.self.{part}.{kind}" for part in ("query", "key", "value")
                ]
                for buffer in (flat.values, flat.gradients, flat.bfloat16_copy):
                    views = flat.views(buffer)
                    parts = [views[name] for name in names]
                    np.testing.assert_array_equal(as_one(parts), np.concatenate(parts))
                    assert np.shares_memory(as_one(parts), buffer)

    def test_each_has_its_segment_its_blocks_and_its_position_among_the_parameters(self, model):
        flat, names = flatten(model), dict(model.named_parameters())
        assert {segment.name: segment.shape for segment in flat.segments} == {n: p.shape for n, p in names.items()}
        assert [names[segment.name] for segment in flat.segments] == list(flat.parameters)
        assert {segment.start for segment in flat.segments} <= set(flat.bounds.tolist())
        assert all(one.stop <= other.start for one, other in pairwise(flat.segments))

    @pytest.mark.parametrize(("width", "are_joined"), [(72, True), (66, False)])
    def test_they_keep_all_bounds_on_multiples_of_a_kernels_access(self, width, are_joined):
        """The order of sums depends on how much a kernel reads at once; a shard must not change it."""
        lucid.manual_seed(0)
        module = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        module.join(*(layer.bias for layer in module))
        flat = flatten(module)
        assert (as_one([layer.bias.data for layer in module]) is not None) == are_joined
        assert not (flat.bounds % 8).any()

    def test_a_joined_parameter_that_its_module_has_replaced_is_left_out(self):
        lucid.manual_seed(0)
        module = nn.Linear(4, 4)
        module.join(module.weight, replaced := Parameter(np.ones((4, 4), np.float32)))
        flat = flatten(module)
        assert [segment.name for segment in flat.segments] == ["weight", "bias"]
        assert not np.shares_memory(replaced.data, flat.values)


class TestRounded:
    """A copy of the values in bfloat16, which operations are given."""

    @pytest.fixture
    def flat(self, model):
        return flatten(model, bfloat16_copy=True)

    def assert_copies_are_of(self, flat):
        np.testing.assert_array_equal(flat.bfloat16_copy, flat.values.astype(ml_dtypes.bfloat16))

    def test_linear_maps_take_the_copy_of_matrices_and_all_else_the_values(self, flat):
        self.assert_copies_are_of(flat)
        for segment, parameter in zip(flat.segments, flat.parameters, strict=True):
            assert parameter.dtype == np.float32
            expected = flat.bfloat16_copy if parameter.ndim >= 2 else flat.values
            for given, buffer in ((parameter.compute_copy, flat.values), (parameter.linear_copy, expected)):
                assert np.shares_memory(given, buffer)
                np.testing.assert_array_equal(given, flat.views(buffer)[segment.name])

    def test_without_a_copy_operations_take_the_values(self, model):
        flat = flatten(model)
        assert flat.bfloat16_copy is None
        flat.round()
        assert all(parameter.compute_copy is parameter.linear_copy is parameter.data for parameter in flat.parameters)

    def test_load_state_dict_and_round_update_the_copy(self, model, flat):
        model.load_state_dict({name: array + 1 for name, array in model.state_dict().items()})
        for parameter in flat.parameters:
            np.testing.assert_array_equal(parameter.linear_copy, parameter.data.astype(ml_dtypes.bfloat16))
        flat.values += 1
        flat.round()
        self.assert_copies_are_of(flat)

    @pytest.mark.parametrize("optimizer", [AdamW, LAMB])
    def test_optimizers_update_the_copy(self, flat, optimizer):
        flat.gradients[:] = np.random.default_rng(0).standard_normal(len(flat.gradients))
        before = flat.bfloat16_copy.copy()
        optimizer(OneProcess(flat)).step(1e-1)
        self.assert_copies_are_of(flat)
        assert (flat.bfloat16_copy != before).mean() > 0.5


def test_a_module_with_flat_buffers_refuses_to_move(model):
    flat = flatten(model)
    values = flat.values.copy()
    assert model.to("cpu").to(np.float32) is model
    with pytest.raises(RuntimeError, match="move or convert the module before you make these"):
        model.to(np.float64)
    for name, view in flat.views(flat.values).items():
        assert np.shares_memory(dict(model.named_parameters())[name].data, view)
    np.testing.assert_array_equal(flat.values, values)


def test_an_interrupted_backward_is_noticed_by_its_missing_gradients(model):
    flat = flatten(model)
    assert not flat.has_gradients
    first, *others = flat.parameters
    first.mark_gradient()
    with pytest.raises(RuntimeError, match=rf"1 of {len(others) + 1} parameters have a gradient"):
        _ = flat.has_gradients
    flat.mark_gradients()
    assert flat.has_gradients
