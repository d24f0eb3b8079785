"""Supervision: what it refuses. Its rule is in test_restart_rule.py, whole runs in faults/test_restarts.py."""

import pytest

from lucid.errors import LaunchError
from lucid.launch.options import Options, Restarts
from lucid.launch.supervise import supervise


def test_more_ranks_at_least_than_at_the_start_are_refused():
    restarts = Restarts(1, min_ranks=3)
    with pytest.raises(LaunchError, match="--min-ranks is 3, but the run starts with 2: lower it"):
        supervise(Options(arguments=("run.yaml",)), restarts, 2, ("a", "b"), lambda *_: pytest.fail("asked"))
