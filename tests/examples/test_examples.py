"""The programs in examples/: they run as their first lines say, on one rank and on several."""

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from isolation import REPOSITORY
from launching import FEW_CORES, run_to_end

import lucid
from lucid import distributed
from lucid.models import BERTForPreTraining

EXAMPLES = REPOSITORY / "examples"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
STEPS = 6
LINE = re.compile(r"step +(\d+)  loss (\d+\.\d+)  learning rate \d")


def program(name):
    """The module of an example."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(corpus, output):
    """Train a tiny model on each rank that calls this."""
    example = program("train")
    example.SHAPE, example.SAVE_EVERY = TINY, 2
    example.main(Path(corpus), Path(output), STEPS)


def losses_in(printed):
    return {int(step): float(loss) for step, loss in LINE.findall(printed)}


class Killed(Exception):  # noqa: N818
    """In the place of a signal."""


def killed_after(step, monkeypatch):
    """Make the program end when it has saved this step."""
    save = lucid.save

    def save_and_die(state, path):
        save(state, path)
        if state["step"] == step:
            raise Killed

    monkeypatch.setattr(lucid, "save", save_and_die)


@pytest.fixture(scope="module")
def undisturbed(corpus_folder, tmp_path_factory):
    """The folder of a run on one rank."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(corpus_folder, folder)
    return folder


def weights_in(folder):
    return lucid.load(folder / "checkpoint")["model"]


def test_the_loss_falls_and_a_killed_program_goes_on_with_the_same_bits(
    undisturbed, corpus_folder, tmp_path, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(Killed):
            train(corpus_folder, tmp_path)
    train(corpus_folder, tmp_path)
    losses = losses_in(capsys.readouterr().out)
    assert list(losses) == [2, 4, 6]
    assert losses[6] < losses[2] < math.log(200) + 1.5
    model = BERTForPreTraining.from_pretrained(tmp_path / "model").state_dict()
    for name, weights in weights_in(undisturbed).items():
        np.testing.assert_array_equal(weights_in(tmp_path)[name], weights, err_msg=name)
        np.testing.assert_array_equal(model[name], weights, err_msg=name)


def test_two_ranks_go_on_where_one_was_killed_and_take_its_steps(
    undisturbed, corpus_folder, tmp_path, monkeypatch, rank_pool
):
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(Killed):
            train(corpus_folder, tmp_path)
    printed = [result.output for result in rank_pool.run(2, train, str(corpus_folder), str(tmp_path))]
    assert (list(losses_in(printed[0])), printed[1]) == ([4, 6], "")
    for name, weights in weights_in(undisturbed).items():
        np.testing.assert_allclose(weights_in(tmp_path)[name], weights, atol=1e-4, err_msg=name)


def test_masks_are_filled(undisturbed, capsys):
    program("fill_mask").main(undisturbed / "model", "the [MASK] of a [MASK].")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for line in lines:
        percentages = [float(number) for number in re.findall(r"(\d+\.\d)%", line)]
        assert len(percentages) == 5
        assert percentages == sorted(percentages, reverse=True)


def test_more_ranks_than_samples_are_refused(corpus_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "connect", lambda: SimpleNamespace(rank=0, size=33))
    with pytest.raises(SystemExit, match="33 ranks cannot share batches of 32 samples: start fewer"):
        program("train").main(corpus_folder, tmp_path / "run", 2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "start", ["launch", pytest.param("alone", marks=pytest.mark.long), pytest.param("mpiexec", marks=pytest.mark.long)]
)
def test_it_starts_in_every_way_that_it_says(start, mpiexec, corpus_folder, tmp_path):
    python, words = sys.executable, [EXAMPLES / "train.py", corpus_folder, tmp_path / "run", "--steps", "2"]
    command = {
        "alone": [python, *words],
        "mpiexec": [mpiexec, "-n", "2", python, "-m", "mpi4py", *words],
        "launch": [python, "-m", "lucid", "launch", "-n", "2", *words],
    }[start]
    finished = run_to_end([*map(str, command)], 60, {**FEW_CORES, "LUCID_KERNELS": "reference"})
    assert finished.returncode == 0, finished.stdout
    assert list(losses_in(finished.stdout)) == [2]
    assert BERTForPreTraining.from_pretrained(tmp_path / "run" / "model").config.hidden_size == 128


def test_a_launched_script_has_an_empty_input_and_has_not_failed_if_it_ends_without_close(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom lucid.distributed import connect\nassert sys.stdin.read() == ''\nconnect().barrier()\n"
    )
    finished = run_to_end([sys.executable, "-m", "lucid", "launch", "-n", "2", str(script)], 60, FEW_CORES)
    assert (finished.returncode, "without a word" in finished.stdout) == (0, False), finished.stdout


@pytest.mark.long
@pytest.mark.parametrize(
    ("ending", "message"),
    [("1 / 0", "ZeroDivisionError"), ("sys.exit(3)", ""), ("os.kill(os.getpid(), 9)", "was killed by SIGKILL")],
)
def test_a_rank_that_fails_ends_a_launched_script(ending, message, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\nfrom lucid.distributed import connect\ncommunicator = connect()\n"
        f"if communicator.rank == 1:\n    {ending}\ncommunicator.barrier()\n"
    )
    finished = run_to_end([sys.executable, "-m", "lucid", "launch", "-n", "2", str(script)], 60, FEW_CORES)
    assert finished.returncode != 0
    assert message in finished.stdout
