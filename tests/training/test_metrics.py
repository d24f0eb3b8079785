"""The log of a run: whole lines of JSON, even after damage."""

import json
import math
import os
import shutil
import subprocess
from contextlib import suppress

import pytest

from lucid.errors import ConfigError
from lucid.training.log.metrics import MetricsLog, read_lines


def test_numbers_that_are_not_finite_become_null(tmp_path):
    log = MetricsLog(tmp_path, 0, ended=False, tensorboard=False, warn=pytest.fail)
    log.write({"step": 1, "loss": math.nan, "norm": math.inf, "rate": 0.5})
    log.close()
    assert json.loads(log.path.read_text()) == {"step": 1, "loss": None, "norm": None, "rate": 0.5}


def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0, ended=False, tensorboard=False, warn=pytest.fail)
    for step in (2, 4, 6):
        log.write({"step": step, "loss": 1.0})
    log.close()
    MetricsLog(tmp_path, 4, ended=False, tensorboard=False, warn=pytest.fail).close()
    assert [line["step"] for line in read_lines(log.path)] == [2, 4]


def test_damaged_lines_are_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"loss": 3}\n[1]\n\xff\xfe\n{"step": 2}\n{"step": 3, "lo')
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one page of data beyond the file that fills it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    """Write until the disk is full."""
    with open(folder / "filling", "ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@pytest.mark.parametrize("tensorboard", [False, True])
def test_lines_that_a_full_disk_refuses_are_written_once_there_is_room(small_disk, tensorboard):
    warnings = []
    log = MetricsLog(small_disk / "run", 0, ended=False, tensorboard=tensorboard, warn=warnings.append)
    log.write({"step": 1, "loss": 0.5})
    fill(small_disk)
    for step in range(2, 202):  # beyond the rest of the page that the file has
        log.write({"step": step, "loss": 0.5})
    assert len(warnings) == 1 + tensorboard
    assert f"{log.path} could not be written: No space left on device; training goes on" in sorted(warnings)[0]
    (small_disk / "filling").unlink()
    log.write({"step": 202, "loss": 0.25})
    log.close()
    assert [json.loads(line)["step"] for line in log.path.read_bytes().splitlines()] == list(range(1, 203))
    if tensorboard:
        assert [step for step, _ in events(small_disk / "run")] == list(range(1, 203))


def test_a_disk_that_is_full_at_first_does_not_cost_the_beginning_that_tensorboard_needs(small_disk):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(small_disk / "run", 0, ended=False, tensorboard=True, warn=lambda warning: None)
    fill(small_disk)
    log.write({"step": 1, "loss": 0.5})
    (small_disk / "filling").unlink()
    log.close()
    (path,) = (small_disk / "run" / "tensorboard").iterdir()
    assert b"brain.Event:2" in path.read_bytes()[:50]
    assert events(small_disk / "run") == [(1, 0.5)]


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    log = MetricsLog(tmp_path / "run", 0, ended=False, tensorboard=False, warn=pytest.fail)
    log.write({"step": 1})
    shutil.rmtree(tmp_path / "run")
    log.write({"step": 2})
    assert [line["step"] for line in read_lines(log.path)] == [2]


def events(run_folder):
    """The steps and values in the files for TensorBoard, in the order of writing."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    found = []
    for path in sorted((run_folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            size = int.from_bytes(content[:8], "little")
            event, content = event_pb2.Event.FromString(content[12 : 12 + size]), content[16 + size :]
            found += [(event.step, value.simple_value) for value in event.summary.value]
    return found


def test_tensorboard_gets_every_finite_number_but_the_time_which_its_events_have_anyway(tmp_path):
    pytest.importorskip("tensorboardX")
    log = MetricsLog(tmp_path / "run", 0, ended=False, tensorboard=True, warn=pytest.fail)
    log.write({"step": 7, "time": 1.8e9, "gradient_norm/heads": 0.5, "update_ratio/heads": math.nan, "slowest_rank": 2})
    log.close()
    assert events(tmp_path / "run") == [(7, 0.5), (7, 2.0)]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_a_log_that_is_not_a_file_is_refused(tmp_path, kind):
    path = tmp_path / "metrics.jsonl"
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ConfigError, match=rf"run_folder: {path} cannot be used: it is a {kind}"):
        MetricsLog(tmp_path, 0, ended=False, tensorboard=False, warn=pytest.fail)
