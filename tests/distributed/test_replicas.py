"""Replicas that differ in a single bit are found, and the rank and the parameter are named."""

import numpy as np
import pytest

from lucid.distributed import find_drift


@pytest.fixture
def parameters():
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal((7, 3)).astype(np.float32) for name in ("a", "b", "c")}


def flip_a_bit(array):
    array.view(np.uint8)[3, 5] ^= 16


def test_equal_replicas_have_not_drifted(group, parameters):
    assert find_drift(parameters, group) is None


@pytest.mark.mpi(min_size=3)
def test_a_flipped_bit_names_the_rank_and_the_parameter(communicator, parameters):
    culprit = communicator.size - 2
    if communicator.rank == culprit:
        flip_a_bit(parameters["b"])
    drift = find_drift(parameters, communicator)
    assert (drift.ranks, drift.names) == ([culprit], ["b"])
    assert str(drift) == f"rank {culprit} holds other weights than the rest, in b"


@pytest.mark.mpi(min_size=2)
def test_without_a_majority_all_ranks_are_named(communicator, parameters):
    parameters["a"] += communicator.rank
    parameters["c"] += communicator.rank
    drift = find_drift(parameters, communicator)
    assert drift.ranks == list(range(communicator.size))
    assert drift.names == ["a", "c"]
    assert "hold different weights, in a, c" in str(drift)
