"""The mean of checkpoints: of weights that belong together, in double precision, as a model that others can use."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import RUN

from lucid.models import BERTForPreTraining


@pytest.fixture(scope="module")
def kept(run_folder, tmp_path_factory):
    """A run that has kept its checkpoints of steps 2, 4 and 6; tests do not alter it."""
    from lucid.cli import main

    folder = tmp_path_factory.mktemp("averaged") / "run"
    settings = (f"run_folder={folder}", "train.checkpoint_every=2", "train.keep_every=2", "train.keep_checkpoints=1")
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(run_folder.parent / "run.yaml"), *settings])
    assert leaving.value.code == 0
    return folder


def checkpoint(run, step):
    return run / "checkpoints" / f"0001-{step:08d}"


def weights_of(*folders):
    return [load_file(folder / "model.safetensors") for folder in folders]


def test_the_mean_is_that_of_double_precision_rounded_once(lucid, kept, tmp_path):
    code, output, errors = lucid("average", kept, tmp_path / "mean", "--last", 3)
    assert (code, errors) == (0, "")
    steps = 2, 4, 6
    lines = [f"{tmp_path / 'mean'} holds the mean of 3 checkpoints"]
    assert output.splitlines() == lines + [f"step {step}  {checkpoint(kept, step)}" for step in steps]
    given = weights_of(*(checkpoint(kept, step) for step in steps))
    (mean,) = weights_of(tmp_path / "mean")
    assert mean.keys() == given[0].keys()
    for name, array in mean.items():
        expected = np.mean([each[name] for each in given], axis=0, dtype=np.float64).astype(np.float32)
        # As in an export, the vocabulary has no padding.
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[: len(array)], err_msg=name)
        assert not any(np.array_equal(array, each[name][: len(array)]) for each in given), name


def test_the_folder_is_what_an_export_makes_and_says_what_it_is_made_of(lucid, kept, tmp_path):
    assert lucid("average", checkpoint(kept, 2), checkpoint(kept, 6), tmp_path / "mean")[0] == 0
    assert lucid("export", kept, tmp_path / "exported")[0] == 0
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (tmp_path / "exported" / name).read_bytes()
    origins = json.loads((tmp_path / "mean/averaged.json").read_text())
    assert [(origin["checkpoint"], origin["step"]) for origin in origins] == [
        (str(checkpoint(kept, step)), step) for step in (2, 6)
    ]
    manifest = json.loads((checkpoint(kept, 6) / "manifest.json").read_text())
    assert origins[1]["weights"] == manifest["model.safetensors"]
    assert BERTForPreTraining.from_pretrained(tmp_path / "mean").config.vocab_size == 200
    assert lucid("predict", tmp_path / "mean", "ba [MASK].")[0] == 0
    assert lucid("export", tmp_path / "mean", tmp_path / "again")[0] == 0


def test_checkpoints_of_a_start_that_was_given_up_are_left_out(lucid, kept, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(kept, run)
    shutil.copytree(checkpoint(run, 4), run / "checkpoints/0002-00000004")
    code, output, _ = lucid("average", run, tmp_path / "mean", "--last", 2)
    assert code == 0
    assert [line.split()[-1][-13:] for line in output.splitlines()[1:]] == ["0001-00000002", "0002-00000004"]


def test_too_few_checkpoints_are_refused(lucid, kept, tmp_path):
    code, output, errors = lucid("average", kept, tmp_path / "mean")
    assert (code, output) == (2, "")
    assert "has 3 of the 5 checkpoints to average: give a smaller --last, or keep more" in errors
    assert not (tmp_path / "mean").exists()


def test_what_is_no_choice_of_checkpoints_is_refused(lucid, kept, tmp_path):
    one, two = checkpoint(kept, 2), checkpoint(kept, 4)
    for arguments, message in (
        ((one,), "is not the folder of a run: give that, or two or more checkpoints"),
        ((one, two, "--last", 2), "--last chooses checkpoints of one run"),
        ((one, kept), "is the folder of a run: give one run alone, or checkpoints"),
    ):
        code, _, errors = lucid("average", *arguments, tmp_path / "mean")
        assert (code, errors.count("\n")) == (2, 1)
        assert message in errors


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model.hidden_size=8",), "have different shapes: hidden_size 8 instead of 16"),
        (("data.nsp=false",), "have not trained the same parts of the model"),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(overrides, message, lucid, run_folder, kept, tmp_path):
    settings = run_folder.parent / "run.yaml", f"run_folder={tmp_path / 'other'}", "train.steps=1"
    assert lucid("train", *settings, *overrides)[0] == 0
    code, _, errors = lucid("average", checkpoint(tmp_path / "other", 1), checkpoint(kept, 6), tmp_path / "mean")
    assert (code, message in errors) == (2, True), errors


def test_checkpoints_of_different_tokenizers_are_refused(lucid, kept, tmp_path, monkeypatch):
    from lucid.cli import average

    opened = average.open_checkpoint

    def with_another_tokenizer(folder):
        found = opened(folder)
        is_first = folder == checkpoint(kept, 2)
        return replace(found, state=replace(found.state, tokenizer="other")) if is_first else found

    monkeypatch.setattr(average, "open_checkpoint", with_another_tokenizer)
    code, _, errors = lucid("average", kept, tmp_path / "mean", "--last", 3)
    assert code == 2
    assert "have different tokenizers: their mean has no meaning" in errors


def test_a_damaged_checkpoint_is_refused(lucid, kept, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    path = checkpoint(tmp_path / "run", 4) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, _, errors = lucid("average", tmp_path / "run", tmp_path / "mean", "--last", 2)
    assert code == 2
    assert f"{path} was altered" in errors


def test_the_vocabulary_of_the_run_is_padded():
    """Else the tests above would not show that the mean is cut to the tokenizer's."""
    assert RUN["model"]["vocab_size"] == 208
