"""The model or checkpoint that a run starts from gives the shape of its model, and the settings say what differs."""

import shutil

import pytest
import yaml

from lucid.errors import CheckpointError
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.training.config import load

SHAPE = BERTConfig(
    vocab_size=200,
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=48,
    hidden_dropout_prob=0.05,
)
SHORT = ("train.steps=2", "optimizer.warmup_steps=0", "train.checkpoint_every=1")


@pytest.fixture
def without_shape(run_file):
    """The settings of the small run, without a section `model`."""
    settings = yaml.safe_load(run_file.read_text())
    del settings["model"]
    run_file.write_text(yaml.safe_dump(settings))
    return run_file


@pytest.fixture
def model(corpus_folder, tmp_path):
    BERTForPreTraining(SHAPE).save_pretrained(tmp_path / "model")
    for path in (corpus_folder / "tokenizer").iterdir():
        shutil.copyfile(path, tmp_path / "model" / path.name)
    return tmp_path / "model"


def test_without_anything_to_start_from_it_is_bert_base(without_shape):
    assert load(without_shape).model == BERTConfig()
    assert load(without_shape, ["initial_model=/nowhere"]).model == BERTConfig()


def test_a_model_gives_its_shape_and_settings_say_what_differs(without_shape, model):
    assert load(without_shape, [f"initial_model={model}"]).model == SHAPE
    changed = load(without_shape, [f"initial_model={model}", "model.hidden_dropout_prob=0.2", "model.vocab_size=208"])
    assert vars(changed.model) == vars(SHAPE) | {"hidden_dropout_prob": 0.2, "vocab_size": 208}
    (model / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"model/config\.json cannot be read"):
        load(without_shape, [f"initial_model={model}"])


def test_a_contradiction_is_refused(on_ranks, without_shape, model):
    finished = on_ranks(2, "train", without_shape, f"initial_model={model}", "model.num_hidden_layers=2")
    assert finished.returncode == 2
    assert f"{model} has another shape than the section model: num_hidden_layers 1 instead of 2" in finished.stdout


def test_a_run_that_has_begun_needs_the_folder_no_more(on_ranks, without_shape, model, tmp_path):
    begun = on_ranks(2, "train", without_shape, f"initial_model={model}", *SHORT)
    assert begun.returncode == 0, begun.stdout
    shutil.rmtree(model)
    resumed = on_ranks(1, "train", without_shape, f"initial_model={model}", *SHORT, "train.steps=3")
    assert resumed.returncode == 0, resumed.stdout
    assert "resumes from step 2" in resumed.stdout
    assert "settings of model changed" not in resumed.stdout
    for start in ("branch_from", "initial_checkpoint"):
        for place in (tmp_path / "run", tmp_path / "run/checkpoints/0002-00000003"):
            overrides = [f"{start}={place}", f"run_folder={tmp_path / 'next'}", "model.hidden_dropout_prob=0"]
            assert vars(load(without_shape, overrides).model) == vars(SHAPE) | {"hidden_dropout_prob": 0}
