"""The recipes in `configs/`: each runs, made small, and the phases fit one another."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lucid.cli import main
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.optim import WarmupPolynomialDecay
from lucid.training.config import load

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
SMALL_MODEL = tuple(f"model.{name}={value}" for name, value in SHAPE.items())
SMALL = (
    "optimizer.warmup_steps=1",
    "train.steps=5",
    "train.global_batch=4",
    "train.micro_batch=2",
    "train.log_every=1",
    "train.evaluate_every=2",
    "train.evaluation_samples=4",
)


@pytest.fixture
def run_small(corpus_folder, tmp_path):
    """A function that runs a recipe for five steps on a small model, and returns its log."""

    def run(name, *overrides):
        folder = f"run_folder={tmp_path / name}"
        length = f"data.sequence_length={min(load(CONFIGS / f'{name}.yaml').data.sequence_length // 8, 32)}"
        with pytest.raises(SystemExit) as leaving:
            main(
                [
                    "train",
                    str(CONFIGS / f"{name}.yaml"),
                    *SMALL,
                    length,
                    f"data.path={corpus_folder}",
                    folder,
                    *overrides,
                ]
            )
        assert leaving.value.code == 0
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return run


def assert_trained(lines):
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "held_out_perplexity" in line] == [2, 4, 5]


def test_these_tests_cover_every_recipe():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {
        "small_cpu",
        "bert_base_phase1",
        "bert_base_phase2",
        "bert_large_lamb_phase1",
        "bert_large_lamb_phase2",
        "continue_from_huggingface",
    }


def test_the_small_recipe_runs(run_small):
    assert_trained(run_small("small_cpu", *SMALL_MODEL))


@pytest.mark.parametrize("name", ["bert_base", "bert_large_lamb"])
def test_the_second_phase_starts_from_the_first(name, run_small, tmp_path):
    assert_trained(run_small(f"{name}_phase1", *SMALL_MODEL))
    assert_trained(run_small(f"{name}_phase2", f"initial_checkpoint={tmp_path / f'{name}_phase1'}"))
    (checkpoint,) = (tmp_path / f"{name}_phase2/checkpoints").glob("*-00000005")
    assert json.loads((checkpoint / "state.json").read_text())["optimizer_updates"] == 10


def test_training_continues_from_a_hugging_face_model(run_small, corpus_folder, tmp_path):
    BERTForPreTraining(BERTConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    for path in (corpus_folder / "tokenizer").iterdir():
        shutil.copyfile(path, tmp_path / "model" / path.name)
    assert_trained(run_small("continue_from_huggingface", f"initial_model={tmp_path / 'model'}"))


@pytest.mark.parametrize("name", ["bert_base", "bert_large_lamb"])
def test_both_phases_have_the_same_model_and_optimizer(name):
    first, second = (load(CONFIGS / f"{name}_phase{phase}.yaml") for phase in (1, 2))
    assert second.initial_checkpoint == first.run_folder
    # It has the model of the first.
    assert "model" not in yaml.safe_load((CONFIGS / f"{name}_phase2.yaml").read_text())
    schedule = {"learning_rate", "final_learning_rate", "warmup_steps"}
    assert first.optimizer.model_dump(exclude=schedule) == second.optimizer.model_dump(exclude=schedule)
    assert (first.data.sequence_length, second.data.sequence_length) == (128, 512)


def test_the_two_phases_of_bert_base_follow_one_decay_over_a_million_steps():
    first, second = (load(CONFIGS / f"bert_base_phase{phase}.yaml") for phase in (1, 2))
    steps = first.train.steps + second.train.steps
    assert steps == 1_000_000
    whole = WarmupPolynomialDecay(
        peak=first.optimizer.learning_rate, warmup_steps=first.optimizer.warmup_steps, steps=steps
    )
    between = whole.learning_rate(first.train.steps)
    assert first.optimizer.final_learning_rate == second.optimizer.learning_rate == pytest.approx(between, rel=1e-4)
