"""`branch_from`: a new run branches from another one's checkpoint, and trains on as that run itself would."""

import hashlib
import json
import shutil

import pytest
import yaml

from lucid.cli import main
from lucid.training.checkpoints.store import find_model
from lucid.training.history import History

STABLE = (
    *("optimizer.schedule=wsd", "optimizer.decay_steps=0", "train.steps=12", "train.checkpoint_every=6"),
    # Lines of the log straddle the branch.
    *("train.reduction=exact", "train.micro_batch=3", "train.log_every=4", "data.packing=true"),
)


@pytest.fixture
def parent(undisturbed):
    return undisturbed(1, *STABLE)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(run_folder):
    return hashlib.sha256((find_model(run_folder) / "model.safetensors").read_bytes()).hexdigest()


def log(run_folder):
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_branch_goes_on_bit_for_bit_as_its_parent_does(ranks, parent, train, losses, tmp_path):
    before = content(parent)
    first = parent / "checkpoints/0001-00000006"
    assert train(ranks, "branch", *STABLE, f"branch_from={first}") == {
        step: loss for step, loss in losses(parent).items() if step > 6
    }
    assert weights(tmp_path / "branch") == weights(parent)
    assert content(parent) == before
    # It is a run of its own from its first checkpoint on, and needs its parent no more.
    train(ranks, "branch", *STABLE, "branch_from=/gone", "train.steps=15")
    assert History.of(tmp_path / "branch").at(3).samples_before(3) == 24


def test_a_branch_that_takes_no_step_has_a_checkpoint_of_its_own(parent, train, tmp_path):
    train(1, "branch", *STABLE, f"branch_from={parent}")
    assert find_model(tmp_path / "branch").name == "0001-00000012"
    assert weights(tmp_path / "branch") == weights(parent)


def test_a_branch_decays_where_its_parent_goes_on(parent, train, tmp_path):
    decay = (*STABLE, "optimizer.decay_steps=4", "train.log_every=1", "optimizer.final_learning_rate=1e-4")
    train(1, "decay", *decay, f"branch_from={parent}/checkpoints/0001-00000006")
    rates = {line["step"]: line["learning_rate"] for line in log(tmp_path / "decay") if "loss" in line}
    assert list(rates) == [7, 8, 9, 10, 11, 12]
    assert rates[7] == rates[8] == rates[9] == 3e-3
    assert 3e-3 > rates[10] > rates[11] > rates[12] > 1e-4


def test_its_past_is_known_before_it_begins_and_afterwards(parent, run_file, capsys, tmp_path):
    settings = yaml.safe_load(run_file.read_text())
    settings |= {"run_folder": str(tmp_path / "run"), "branch_from": str(parent)}
    run_file.write_text(yaml.safe_dump(settings))
    changed = (*STABLE, "train.global_batch=6", "train.steps=14")
    with pytest.raises(SystemExit) as leaving:
        main(["plan", str(run_file), *changed])
    assert leaving.value.code == 0
    assert f"branches from step 12 of {parent}/checkpoints/0001-00000012" in capsys.readouterr().out
    expected = {1: 0, 12: 132, 13: 144, 14: 150}
    before = History.of(run_file, changed)
    assert {step: before.at(step).samples_before(step) for step in expected} == expected
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(run_file), *changed])
    assert leaving.value.code == 0
    for place in (run_file, changed), (tmp_path / "run", ()):
        after = History.of(*place)
        assert {step: after.at(step).samples_before(step) for step in expected} == expected
        assert after.doubt(range(1, 15)) is None


def test_a_branch_stays_where_it_began_though_its_parent_goes_on(parent, train, tmp_path):
    growing = tmp_path / "growing"
    shutil.copytree(parent, growing)
    branch = (*STABLE, "train.steps=14", f"branch_from={growing}")
    expected = train(1, "branch", *branch)
    weights_before = weights(tmp_path / "branch")
    # As after a kill before the next checkpoint, while the parent has gone on beyond the branch's last step.
    shutil.rmtree(tmp_path / "branch/checkpoints/0001-00000014")
    train(1, "growing", *STABLE, "train.steps=18")
    assert train(1, "branch", *branch) == expected
    assert weights(tmp_path / "branch") == weights_before


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps=9", "is at step 12, beyond train.steps=9: choose another branch_from, or restore the settings"),
        ("train.seed=3", "was trained with train.seed=0: choose another branch_from, or restore the settings, or set"),
        (
            "model.hidden_size=32",
            "was trained with another model (hidden_size 16 instead of 32): choose another branch",
        ),
        ("initial_model=models/x", "initial_model and branch_from are both set: a run starts from one of them"),
        ("branch_from=/nowhere", "/nowhere is not a whole checkpoint: manifest.json is missing"),
    ],
)
def test_a_branch_that_is_no_continuation_is_refused(override, sentence, parent, run_file, capsys, tmp_path):
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(run_file), *STABLE, f"branch_from={parent}", override])
    errors = capsys.readouterr().err
    assert (leaving.value.code, errors.count("\n")) == (2, 1)
    assert sentence in errors
    assert not (tmp_path / "run/checkpoints").exists()
