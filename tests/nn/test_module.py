"""What a module registers is what it uses, and what flat buffers hold is what is trained."""

import copy

import numpy as np
import pytest

import lucid
from lucid.distributed import DistributedDataParallel
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import LayerNorm, Linear, Module, Parameter, flatten
from lucid.optim import LAMB, AdamW

CONFIG = BERTConfig(
    vocab_size=30,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
BATCH = {
    "input_ids": np.array([[1, 5, 6, 2]]),
    "mlm_labels": np.array([[-100, 5, -100, -100]]),
    "nsp_labels": np.array([1]),
}


def names(module):
    return [name for name, _ in module.named_parameters()]


class Pair(Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Linear(3, 2), Linear(2, 2)


@pytest.mark.parametrize(
    "value", [np.ones((2, 3), np.float32), lucid.tensor(np.ones((2, 3), np.float32)), 3], ids=["array", "tensor", "int"]
)
def test_only_a_parameter_or_nothing_takes_the_place_of_a_parameter(value):
    module = Pair()
    weight = module.first.weight
    with pytest.raises(TypeError, match=rf"weight is a Parameter, which a {type(value).__name__} cannot replace"):
        module.first.weight = value
    with pytest.raises(TypeError, match="first is a Linear"):
        module.first = value
    assert module.first.weight is weight
    assert "first.weight" in names(module)


def test_what_is_replaced_or_deleted_is_not_registered_any_more():
    module = Pair()
    module.first.bias = None
    del module.second.bias
    assert names(module) == ["first.weight", "second.weight"]
    module.first.weight = other = Parameter(np.zeros((2, 3), np.float32))
    assert dict(module.named_parameters())["first.weight"] is other
    module.second.weight = LayerNorm(2)
    assert names(module) == ["first.weight", "second.weight.weight", "second.weight.bias"]
    module.second = None
    assert names(module) == ["first.weight"]


def test_what_replaces_a_parameter_or_a_module_takes_its_place_in_the_order():
    module = Pair()
    before = names(module)
    module.first.weight = Parameter(np.zeros((2, 3), np.float32))
    module.first = Linear(3, 2)
    assert names(module) == before


def test_gradients_are_complete_without_those_of_frozen_parameters():
    module = Pair()
    module.second.weight.requires_grad_(False)
    flat = flatten(module)
    module.second(module.first(lucid.tensor(np.ones((1, 3), np.float32)))).sum().backward()
    assert flat.has_gradients


def test_a_parameter_in_flat_buffers_stays_there():
    module = Pair()
    flat = flatten(module)
    with pytest.raises(RuntimeError, match="weight is in flat buffers"):
        module.first.weight = Parameter(np.zeros((2, 3), np.float32))
    with pytest.raises(RuntimeError, match="bias is in flat buffers"):
        module.first.bias = None
    with pytest.raises(RuntimeError, match="write to the elements"):
        module.first.weight.data = np.zeros((2, 3), np.float32)
    module.first.weight = module.first.weight
    module.first.weight.data[...] = 7
    assert (flat.values == 7).sum() == 6


def test_a_module_has_one_pair_of_flat_buffers():
    module, communicator = Pair(), SingleCommunicator()
    ddp = DistributedDataParallel(module, communicator)
    for again in (lambda: DistributedDataParallel(module, communicator), lambda: flatten(module.second)):
        with pytest.raises(RuntimeError, match="is in flat buffers already"):
            again()
    assert all(np.shares_memory(parameter.data, ddp.flat.values) for parameter in module.parameters())


def test_a_copy_of_a_module_in_flat_buffers_is_a_module_of_its_own():
    """The head of such a model computes with rows of zeros behind the vocabulary, which `flatten` has put there."""
    ddp = DistributedDataParallel(BERTForPreTraining(CONFIG).eval(), SingleCommunicator())
    other = copy.deepcopy(ddp.module)
    assert names(other) == names(ddp.module)
    before = ddp.module.get_loss(**BATCH).item()
    assert other.get_loss(**BATCH).item() == pytest.approx(before)
    for parameter in other.parameters():
        parameter.data[...] = 0
    assert other.get_loss(**BATCH).item() == pytest.approx(np.log(30) + np.log(2))
    other.get_loss(**BATCH).backward()
    assert not ddp.flat.has_gradients
    assert ddp.module.get_loss(**BATCH).item() == before
    flatten(other.to(np.float64))


@pytest.mark.parametrize("optimizer", [AdamW, LAMB])
def test_optimizers_leave_frozen_parameters_as_they_are(optimizer):
    model = BERTForPreTraining(CONFIG)
    attention = model.bert.encoder.layer[0].attention
    frozen = [model.bert.embeddings.word_embeddings.weight, attention.self.key.weight, attention.output.dense.bias]
    for parameter in frozen:
        parameter.requires_grad_(False)
    ddp = DistributedDataParallel(model, SingleCommunicator())
    before = {name: values.copy() for name, values in model.state_dict().items()}
    stepper = optimizer(ddp.partition, weight_decay=0.1)
    for _ in range(3):
        ddp.zero_grad()
        model.get_loss(**BATCH).backward()
        stepper.step(0.1)
    for name, parameter in model.named_parameters():
        unchanged = np.array_equal(parameter.data, before[name])
        assert unchanged == any(parameter is each for each in frozen), name
