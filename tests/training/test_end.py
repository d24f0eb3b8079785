"""The step at which a run is expected to end: from its settings, and from where it stands."""

import pytest
from small_run import SETTINGS

from lucid.training.checkpoints.best import Best
from lucid.training.config import from_dict
from lucid.training.end import expected_end


@pytest.mark.parametrize(
    ("settings", "step", "seconds", "expected"),
    [
        ({}, 0, 0.0, 50),
        ({}, 20, 9999.0, 50),
        ({}, 50, 1.0, 50),
        ({"max_hours": 1.0}, 0, 0.0, 50),
        ({"max_hours": 1.0}, 10, 100.0, 50),
        ({"max_hours": 1.0}, 10, 1800.0, 20),
        ({"max_hours": 1.0}, 20, 3600.1, 20),
        ({"patience": 3, "evaluate_every": 2}, 20, 1.0, 20),
        ({"patience": 4, "evaluate_every": 2}, 20, 1.0, 50),
    ],
)
def test_a_run_ends_with_its_steps_or_its_time_or_its_patience(settings, step, seconds, expected):
    train = SETTINGS["train"] | settings
    config = from_dict({**SETTINGS, "train": train, "data": SETTINGS["data"] | {"path": "corpus"}, "run_folder": "run"})
    assert expected_end(config, step, seconds, Best(14, 5.0, 20, 3, "")) == expected
