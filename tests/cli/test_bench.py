"""`lucid bench step`: a table that adds up, on any number of ranks."""

import re

import pytest

from lucid.cli import main

SMALL = ["bench", "step", "--size", "small", "--length", "16", "--batch", "2", "--steps", "2"]


def milliseconds(output):
    """Return the column of milliseconds by the first column, indentation included."""
    rows = re.findall(r"^(?:\[0\] )?( *\S[\w, -]*?) {2,}([\d,]+\.\d\d) +\d+\.\d%", output, re.MULTILINE)
    return {name: float(number.replace(",", "")) for name, number in rows}


def lucid(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code


def test_the_lines_add_up_to_the_step(capsys):
    assert lucid(*SMALL) == 0
    output = capsys.readouterr().out
    times = milliseconds(output)
    groups = [time for name, time in times.items() if name != "step" and not name.startswith("  ")]
    assert sum(groups) == pytest.approx(times["step"], abs=0.005 * (len(groups) + 1))
    products = [times[f"  {name}"] for name in ("input gradient", "weight gradient")]
    assert sum(products) < times["products of linear layers"]
    assert re.search(r"[\d.]+ sequences/s; 0\.\d\d GFLOP a step", output)
    assert re.search(r"MFU \d+\.\d% of [\d.]+ GFLOP/s", output)


def test_more_than_all_of_the_limit_is_called_a_mistake(capsys, monkeypatch):
    monkeypatch.setattr("lucid.analysis.breakdown.product_limit", lambda run: 1e6)
    assert lucid(*SMALL) == 0
    assert re.search(r"MFU [\d,.]+% of .*\(above 100%: other programs slowed its measurement", capsys.readouterr().out)


def test_settings_can_be_given_without_a_file(capsys):
    assert lucid(*SMALL, "optimizer.name=lamb", "model.hidden_dropout_prob=0") == 0
    times = milliseconds(capsys.readouterr().out)
    assert {"  LAMB, moments", "  LAMB, update"} <= times.keys()
    assert "  dropout" not in times


def test_a_second_phase_is_measured_without_the_first_and_without_its_time_limit(capsys):
    assert lucid(*SMALL, "initial_checkpoint=/nowhere", "train.max_hours=1e-9") == 0
    assert "sequences/s" in capsys.readouterr().out


def test_two_ranks_communicate(run_ranks, run_file, tmp_path):
    finished = run_ranks(2, "-m", "mpi4py", "-m", "lucid", "bench", "step", str(run_file), "--steps", "2")
    assert finished.returncode == 0, finished.stdout
    assert "2 ranks x 1 thread" in finished.stdout
    assert milliseconds(finished.stdout)["communication"] > 0
    assert not (tmp_path / "run").exists()


def test_a_file_and_size_options_exclude_each_other(run_file, capsys):
    assert lucid("bench", "step", run_file, "--size", "base") == 2
    assert "says what to measure" in capsys.readouterr().err


def test_a_wrong_setting_is_told_in_one_sentence(capsys):
    assert lucid(*SMALL, "train.precison=bfloat16") == 2
    told = capsys.readouterr().err
    assert re.fullmatch(r"lucid: .*train\.precison is unknown; did you mean train\.precision\?\n", told)
