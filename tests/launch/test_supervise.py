"""Supervision: what it refuses. test_restart_rule.py tests the rule, and faults/test_restarts.py whole runs."""

import pytest

from lucid.errors import LaunchError
from lucid.launch.options import Options, Restarts
from lucid.launch.supervise import supervise


def test_a_minimum_above_the_number_of_ranks_is_refused():
    restarts = Restarts(1, min_ranks=3)

    def asked(*_):
        pytest.fail("asked")

    with pytest.raises(LaunchError, match="--min-ranks is 3, but the run starts with 2: lower it"):
        supervise(Options(arguments=("run.yaml",)), restarts, 2, {"a": 1, "b": 1}, asked, asked)
