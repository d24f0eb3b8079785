"""The log of a run: whole lines of JSON, even after damage."""

import json
import math

import pytest

from lucid.errors import TrainingError
from lucid.training.metrics import MetricsLog, read_lines


def test_numbers_that_are_not_finite_become_null(tmp_path):
    log = MetricsLog(tmp_path, 0, ended=False, tensorboard=False)
    log.write({"step": 1, "loss": math.nan, "norm": math.inf, "rate": 0.5})
    log.close()
    assert json.loads(log.path.read_text()) == {"step": 1, "loss": None, "norm": None, "rate": 0.5}


def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0, ended=False, tensorboard=False)
    for step in (2, 4, 6):
        log.write({"step": step, "loss": 1.0})
    log.close()
    MetricsLog(tmp_path, 4, ended=False, tensorboard=False).close()
    assert [line["step"] for line in read_lines(log.path)] == [2, 4]


def test_damaged_lines_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"loss": 3}\n[1]\n\xff\xfe\n{"step": 2}\n{"step": 3, "lo')
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_line_that_cannot_be_written_is_an_error(tmp_path):
    log = MetricsLog(tmp_path, 0, ended=False, tensorboard=False)
    log._file = open("/dev/full", "ab")  # noqa: SIM115  # the log closes it
    with pytest.raises(TrainingError, match=r"metrics\.jsonl could not be written: No space left"):
        log.write({"step": 1})
    log.close()
