"""Settings that say how a step is computed, and not what: each with each other one, on two ranks.

Every run has the losses of one rank that takes its batch in one piece.
"""

import numpy as np
import pytest

from lucid.errors import ConfigError
from lucid.kernels import products

SETTINGS = {
    "train.reduction": ("fast", "exact"),
    "optimizer.sharded": ("false", "true"),
    "train.recompute": ("none", "layer"),
    "data.packing": ("false", "true"),
    "train.precision": ("float32", "bfloat16"),
    "distributed.backend": ("shared_memory", "mpi"),
    "train.micro_batch": ("6", "2"),
}
# For each run, which of its two values each setting has. Each two settings meet in all four ways (Taguchi's L8).
RUNS = ("0000000", "0001111", "0110011", "0111100", "1010101", "1011010", "1100110", "1101001")
COMMON = ("train.steps=6", "optimizer.name=lamb", "train.check_replicas_every=2")
WITHIN = {"float32": 1e-4, "bfloat16": 1e-3}


def test_each_two_settings_meet_in_all_ways():
    for first in range(len(SETTINGS)):
        for second in range(first):
            assert len({(run[first], run[second]) for run in RUNS}) == 4


@pytest.fixture
def with_bfloat16(monkeypatch):
    monkeypatch.delenv("LUCID_KERNELS", raising=False)
    try:
        products.set_precision("bfloat16")
    except ConfigError as error:
        pytest.skip(str(error))
    finally:
        products.set_precision("float32")


@pytest.mark.long
@pytest.mark.parametrize("run", RUNS)
def test_the_losses_are_those_of_one_rank(undisturbed, losses, request, run):
    chosen = {name: values[int(number)] for (name, values), number in zip(SETTINGS.items(), run, strict=True)}
    if chosen["train.precision"] == "bfloat16":
        request.getfixturevalue("with_bfloat16")
    what = [f"{name}={chosen[name]}" for name in ("data.packing", "train.precision")]
    one = losses(undisturbed(1, *COMMON, *what))
    two = losses(undisturbed(2, *COMMON, *(f"{name}={value}" for name, value in chosen.items())))
    assert list(one) == list(two) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=WITHIN[chosen["train.precision"]])
