"""The benchmarks for GPUs run on machines without one, on a tiny model; what they say of it is right but for times."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import FEW_CORES
from stand_in.building import why_no_stand_in

from lucid.kernels.cuda import algorithms

ROOT = Path(__file__).parents[2]
needs_emulation = pytest.mark.skipif(why_no_stand_in() != "", reason=why_no_stand_in())


def run(script, *options, seconds=280):
    """What a benchmark prints: its tables, and what it says beside."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    environment = os.environ | FEW_CORES | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout, finished.stderr


def lines_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


@needs_emulation
def test_all_launches_of_a_step_are_known_and_its_products_are_those_of_the_model():
    table, said = run("gpu_launches.py", "--models", "tiny", "--lengths", "16", "--list")
    [counted] = re.findall(r"([\d,]+) FLOPs in products, ([\d,]+) in the model's.*; (\d+) unknown launches", said)
    assert counted[0] == counted[1]
    assert counted[2] == "0", table
    names = {line[0] for line in lines_of(table)}
    assert {"product", "attention", "normalise", "gelu_gradient", "cross_entropy", "adamw"} <= names
    # Gradients that come together are added by the products that make them.
    assert "engine.py" not in table


@needs_emulation
def test_a_larger_batch_has_as_many_launches():
    few, many = (run("gpu_launches.py", "--models", "tiny", "--lengths", "16", "--batch", rows)[0] for rows in "48")
    assert lines_of(few)[2][1:6] == lines_of(many)[2][1:6]


@needs_emulation
def test_a_step_is_timed_in_the_emulation():
    table, _ = run("gpu_step.py", "--tiny", "--sides", "lucid", "--turns", "1", "--steps", "1", "--dropouts", "0.1")
    [line] = [line for line in lines_of(table) if line[0].startswith("tiny")]
    assert line[0] == "tiny, 4 x 16, dropout 0.1"
    assert len(line) == len(lines_of(table)[0])


@needs_emulation
def test_losses_beside_pytorch_are_compared():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    options = "--tiny", "--turns", "1", "--steps", "1", "--dropouts", "0", "--mode", "eager"
    table, _ = run("gpu_step.py", *options)
    [line] = [line for line in lines_of(table) if line[0].startswith("tiny")]
    assert float(line[-2]) < 0.01
    assert float(line[-1]) < 0.05


def test_what_is_chosen_on_the_emulated_gpu_is_forgotten(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    keeping = importlib.import_module("card.keeping")
    for tiny in (True, False):
        with keeping.choices_of_its_own(tiny):
            assert algorithms.chosen("a card", "a product", lambda: {3: 1.0}) == 3
            assert algorithms.kept("a card") == {"a product": 3}
        assert (algorithms.used() == {}) == tiny
        assert (algorithms.kept("a card") == {}) == tiny
