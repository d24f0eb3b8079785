"""`lucid verify`: a replay gives the bits of the run, or the report says where the first ones differ."""

import hashlib
import json
import re
import shutil
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lucid.analysis.verification.replay import find_replay
from lucid.errors import ConfigError
from lucid.files import sha256_of
from lucid.training.trainer import Trainer

EXACT = ("train.reduction=exact", "train.micro_batch=3", "train.log_every=3")


@pytest.fixture
def exact(undisturbed):
    """The folder of an exact run on two ranks, with checkpoints of steps 20, 40 and 50."""
    return undisturbed(2, *EXACT)


@pytest.fixture
def copied(exact, tmp_path):
    """A copy of that run, to be altered."""
    return shutil.copytree(exact, tmp_path / "copied")


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_state(checkpoint, **changes):
    """Change the state of a checkpoint, as a version of lucid that computes otherwise would have written it."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(checkpoint)


def sign(checkpoint):
    """Make the checksums fit again."""
    names = json.loads((checkpoint / "manifest.json").read_text())
    (checkpoint / "manifest.json").write_text(json.dumps({name: sha256_of(checkpoint / name) for name in names}))


@pytest.mark.parametrize(
    ("ranks", "steps"),
    [(1, "0:50"), pytest.param(4, "20:40", marks=pytest.mark.long), pytest.param(2, None, marks=pytest.mark.long)],
)
def test_any_number_of_ranks_replays_an_exact_run_with_the_same_bits(on_ranks, exact, ranks, steps):
    before = files(exact)
    finished = on_ranks(ranks, "verify", exact, *(("--steps", steps) if steps else ()))
    assert finished.returncode == 0, finished.stdout
    first, last = steps.split(":") if steps else ("40", "50")
    assert f"replayed steps {int(first) + 1} to {last} of {exact} from" in finished.stdout
    assert "same bits: weights, moments and counters at" in finished.stdout
    assert f"and {int(last) // 3 - int(first) // 3 + (last == '50')} lines of the log" in finished.stdout
    checkpoint = exact / f"checkpoints/0001-{int(last):08d}"
    assert (
        f"weights     {hashlib.sha256((checkpoint / 'model.safetensors').read_bytes()).hexdigest()}" in finished.stdout
    )
    assert files(exact) == before


def test_the_first_checkpoint_with_another_number_is_named_with_the_parameter(on_ranks, copied):
    name, path = "bert.encoder.layer.1.output.dense.weight", copied / "checkpoints/0001-00000040/model.safetensors"
    weights = load_file(path)
    weights[name][3, 5] += 0.25
    save_file(weights, path, metadata={"format": "pt"})
    sign(path.parent)
    finished = on_ranks(1, "verify", copied, "--steps", ":")
    assert finished.returncode == 1, finished.stdout
    assert "other bits: the checkpoint of step 40 differs, the one of step 20 does not" in finished.stdout
    assert f"{name}: 1 of 512 numbers differ, by at most 0.25" in finished.stdout
    assert "first line of the log" not in finished.stdout


@contextmanager
def miscomputing_at_step_25():
    """One bit of a weight is wrong on all ranks from step 25 on."""
    take_step = Trainer._step

    def step(self, *arguments):
        take_step(self, *arguments)
        if self.run.step == 25 and self.run.is_first:
            self.run.ddp.flat.values.view(np.uint32)[1000] ^= 1 << 20
        self.run.communicator.broadcast(self.run.ddp.flat.values)

    with patch.object(Trainer, "_step", step):
        yield


def test_a_run_that_miscomputed_is_found_in_its_log_and_checkpoints(on_ranks, train, tmp_path):
    train(2, "wrong", *EXACT, "train.keep_checkpoints=9", within=miscomputing_at_step_25)
    finished = on_ranks(1, "verify", tmp_path / "wrong", "--steps", "0:50")
    assert finished.returncode == 1, finished.stdout
    assert "other bits: the checkpoint of step 40 differs, the one of step 20 does not" in finished.stdout
    assert re.search(r"first line of the log that differs, step 27: \w+ is [\d.e-]+ in the replay", finished.stdout)
    assert re.search(r"and \d+ more names of parameters and moments", finished.stdout)


def test_a_loss_that_was_altered_in_the_log_is_found(on_ranks, copied):
    log = copied / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    next(line for line in lines if line["step"] == 45)["loss"] -= 0.5
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = on_ranks(2, "verify", copied)
    assert finished.returncode == 1, finished.stdout
    assert "other lines: the log differs; the checkpoint of step" in finished.stdout
    assert "first line of the log that differs, step 45: loss is" in finished.stdout


def test_a_run_that_went_on_with_other_settings_is_replayed_in_parts(on_ranks, train, train_until, tmp_path):
    settings = (*EXACT, "train.keep_checkpoints=9")
    train_until(2, "run", 10, *settings)
    train(1, "run", *settings, "optimizer.learning_rate=1.0e-3")
    refused = on_ranks(1, "verify", tmp_path / "run", "--steps", "0:50")
    assert refused.returncode == 2, refused.stdout
    assert re.search(r"other settings between steps 10 and 20 \(optimizer.learning_rate 0.001 inst", refused.stdout)
    for steps in ("0:10", "10:50"):
        assert on_ranks(2, "verify", tmp_path / "run", "--steps", steps).returncode == 0


def test_a_fast_run_is_replayed_on_its_number_of_ranks_alone(on_ranks, undisturbed):
    folder = undisturbed(2)
    finished = on_ranks(2, "verify", folder)
    assert finished.returncode == 0, finished.stdout
    refused = on_ranks(1, "verify", folder)
    assert refused.returncode == 2
    assert "the fast reduction on 2 ranks, which gives the same bits on that number alone" in refused.stdout


FAST = ("train.log_every=3", "train.keep_checkpoints=9", "train.checkpoint_every=4", "train.steps=12")


def swept(folder, *steps):
    """Remove checkpoints, as later starts do."""
    for path in (folder / "checkpoints").glob("[0-9]*"):
        if int(path.name[-8:]) in steps:
            shutil.rmtree(path)


@pytest.fixture
def in_two_starts(train, train_until, tmp_path):
    """A function that trains a fast run to step 6 on some ranks, and to its end on others with other settings."""

    def in_two_starts(ranks, others, *overrides):
        train_until(ranks, "run", 6, *FAST)
        train(others, "run", *FAST, *overrides)
        return tmp_path / "run"

    return in_two_starts


def outcome(finished):
    """The exit code, and the settings that the output says have changed between which steps."""
    found = re.search(r"other settings between steps (\d+) and (\d+) \((.*?)\): (.*)", finished.stdout)
    return finished.returncode, *(found.groups() if found else (finished.stdout,))


def test_steps_that_a_start_without_a_checkpoint_trained_are_not_replayed(on_ranks, in_two_starts):
    folder = in_two_starts(1, 1, "optimizer.learning_rate=1.0e-3")
    advice = "replay what has one of them alone, up to --steps 0:6 or from --steps 6:12"
    rate = "optimizer.learning_rate 0.001 instead of 0.003"
    assert outcome(on_ranks(1, "verify", folder, "--steps", ":")) == (2, "6", "8", rate, advice)
    assert on_ranks(1, "verify", folder, "--steps", "6:12").returncode == 0
    swept(folder, 4, 6)
    refused = on_ranks(1, "verify", folder, "--steps", "0:")
    assert refused.returncode == 2, refused.stdout
    assert (
        "the run began again at step 6, and no checkpoint notes with which settings it trained the steps from 1 up to "
        "there: replay steps after 8" in refused.stdout
    )


def test_a_fast_run_that_went_on_with_other_rounding_is_replayed_in_parts(on_ranks, in_two_starts):
    folder = in_two_starts(2, 2, "optimizer.sharded=true")
    refused = outcome(on_ranks(2, "verify", folder, "--steps", "4:12"))
    assert refused[:4] == (2, "6", "8", "optimizer.sharded true instead of false")
    for steps in ("4:6", "6:12"):
        assert on_ranks(2, "verify", folder, "--steps", steps).returncode == 0


def test_each_part_of_a_fast_run_is_replayed_on_its_own_number_of_ranks(on_ranks, in_two_starts):
    folder = in_two_starts(1, 2)
    for ranks in (1, 2):
        refused = outcome(on_ranks(ranks, "verify", folder, "--steps", "4:12"))
        assert refused[:4] == (2, "6", "8", "the number of ranks 2 instead of 1")
    assert on_ranks(2, "verify", folder, "--steps", "6:12").returncode == 0
    refused = on_ranks(2, "verify", folder, "--steps", "4:6")
    assert (refused.returncode, "fast reduction on 1 rank, which" in refused.stdout) == (2, True), refused.stdout


def test_a_run_is_replayed_from_its_own_beginning_without_what_it_was_only_evaluated_on(
    on_ranks, exact, train, train_until, corpus_folder, tmp_path
):
    """What a run starts from counts for its first start alone; the other corpus is gone."""
    other = shutil.copytree(corpus_folder, tmp_path / "other")
    settings = (*EXACT, "train.steps=8", "train.evaluate_every=4", f"train.evaluate_also=[{other}]")
    train_until(1, "run", 6, *settings, f"initial_checkpoint={exact}")
    train(1, "run", *settings, f"initial_model={tmp_path / 'none'}")
    shutil.rmtree(other)
    finished = on_ranks(1, "verify", tmp_path / "run", "--steps", ":")
    assert finished.returncode == 0, finished.stdout
    assert "at 2 checkpoints up to step 8" in finished.stdout


def test_what_cannot_be_replayed_is_refused_in_a_sentence(on_ranks, copied, corpus_folder, tmp_path):
    def refusal(*arguments):
        finished = on_ranks(1, "verify", copied, *arguments)
        assert finished.returncode == 2, finished.stdout
        return finished.stdout

    assert "has checkpoints of steps 20, 40, 50, and 0 is its beginning" in refusal("--steps", "3:40")
    assert "the first step has to come before the last" in refusal("--steps", "40:20")
    assert "give two steps with checkpoints" in refusal("--steps", "40-50")
    assert "only data.path can be given anew" in refusal("train.seed=3")
    assert f"the corpus of the run is not at {tmp_path / 'gone'}" in refusal(f"data.path={tmp_path / 'gone'}")
    last = copied / "checkpoints/0001-00000050"
    config = json.loads((last / "state.json").read_text())["config"]
    write_state(last, corpus="0" * 64)
    assert "other settings between steps 40 and 50 (the corpus 000000000000 instead of" in refusal("--steps", "20:50")
    assert f"was trained with another corpus than {corpus_folder}" in refusal()
    write_state(last, config={**config, "train": config["train"] | {"reduction": "fast", "max_hours": 1.0}})
    assert "the learning rate follows the clock: no replay gives the same bits" in refusal()


def test_only_the_folder_of_a_run_with_a_checkpoint_is_replayed(run_file, tmp_path):
    unfit = "is not the folder of a run that has a checkpoint"
    for path, message in ((run_file, unfit), (tmp_path / "gone", "gone does not exist"), (tmp_path, unfit)):
        with pytest.raises(ConfigError, match=message):
            find_replay(path, None, (), 1)


def test_another_numerical_environment_is_reported(on_ranks, copied):
    checkpoint = copied / "checkpoints/0001-00000050"
    numerics = json.loads((checkpoint / "state.json").read_text())["numerics"]
    write_state(checkpoint, numerics=numerics | {"numpy": "1.0.0"})
    finished = on_ranks(1, "verify", copied)
    assert finished.returncode == 0, finished.stdout
    assert f"what may change bits: numpy {np.__version__} instead of 1.0.0" in finished.stdout


CROSSED = {
    "lamb, packed rows, other masks in each step, a log that does not end with the run": (
        *("optimizer.name=lamb", "data.packing=true", "data.mlm_probability=[0.3,0.1]"),
        *("train.reduction=exact", "train.micro_batch=6", "train.log_every=7"),
    ),
    "a run that ends early": (
        *("optimizer.schedule=wsd", "optimizer.decay_steps=10", "optimizer.learning_rate=0.3"),
        *("train.evaluate_every=10", "train.keep_best=true", "train.patience=2", *EXACT),
    ),
    "shards": ("optimizer.sharded=true", "train.micro_batch=2"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CROSSED)
def test_runs_with_other_settings_are_replayed_too(on_ranks, undisturbed, name):
    folder = undisturbed(2, *CROSSED[name])
    finished = on_ranks(2 if name == "shards" else 1, "verify", folder, "--steps", ":")
    assert finished.returncode == 0, finished.stdout
    assert "what may change bits" not in finished.stdout


@pytest.mark.long
def test_a_branch_is_replayed_from_its_first_checkpoint(on_ranks, exact, train, tmp_path):
    train(2, "branch", *EXACT, f"branch_from={exact}", "train.steps=70", "train.keep_checkpoints=9")
    refused = on_ranks(1, "verify", tmp_path / "branch", "--steps", ":")
    assert refused.returncode == 2, refused.stdout
    assert "or begin at step 50 here" in refused.stdout
    assert on_ranks(1, "verify", tmp_path / "branch", "--steps", "50:70").returncode == 0
