"""Runs the tests marked `mpi`, of all folders, on 2, 3 and 4 ranks."""

import pytest


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long), 4])
def test_the_multi_rank_tests_pass(pass_on_ranks, ranks):
    pass_on_ranks(ranks, hang_after=60, seconds=270)
