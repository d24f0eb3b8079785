"""`data.mlm_probability: [FIRST, LAST]`: the masking rate is a function of the step alone."""

import hashlib
import json

import pytest

from lucid.cli import main
from lucid.data.masking_rate import MaskingRate
from lucid.training.checkpoints.store import find_model
from lucid.training.config import load
from lucid.training.corpora import open_corpora
from lucid.training.estimates import flops_of_sample, memory

FALLING = ("data.mlm_probability=[0.6, 0.1]", "train.steps=11", "optimizer.warmup_steps=1")
EXACT = (*FALLING, "train.reduction=exact", "train.micro_batch=3")


def weights(run_folder):
    return hashlib.sha256((find_model(run_folder) / "model.safetensors").read_bytes()).hexdigest()


def test_it_changes_linearly_from_the_first_step_to_the_last():
    rate = MaskingRate(0.6, 0.1, 11)
    assert [rate.at(step) for step in range(11)] == pytest.approx([0.6 - 0.05 * step for step in range(11)])
    assert (rate.largest, rate.mean, rate.changes) == (0.6, 0.35, True)
    assert MaskingRate(0.6, 0.1, 1).at(0) == 0.6
    constant = MaskingRate.constant(0.15)
    assert (constant.at(0), constant.at(10**6), constant.changes) == (0.15, 0.15, False)


def test_one_rank_and_two_that_were_stopped_train_the_same(undisturbed, train, train_until, losses, tmp_path):
    settings = (*EXACT, "data.packing=true", "data.whole_word_mask=true")
    one = undisturbed(1, *settings)
    train_until(2, "stopped", 5, *settings)
    assert train(2, "stopped", *settings) == losses(one)
    assert weights(tmp_path / "stopped") == weights(one)


def labels(run_folder, step, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["show", str(run_folder), "--step", str(step), "--rows", "all", "--json"])
    assert leaving.value.code == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return [
        label
        for row in rows
        for part in row["sequences"]
        for segment in part["segments"]
        for label in segment["labels"]
    ]


def test_a_step_shows_the_masks_that_it_was_trained_on(undisturbed, train, capsys, tmp_path):
    folder = undisturbed(1, *EXACT)
    shares = []
    for step in (1, 6, 11):
        of_step = labels(folder, step, capsys)
        shares.append(sum(label is not None for label in of_step) / len(of_step))
    assert shares == pytest.approx([0.6, 0.35, 0.1], abs=0.03)
    # With more steps to come the rate is another one from there on, but not before.
    train(1, "longer", *EXACT)
    before = labels(tmp_path / "longer", 6, capsys)
    train(1, "longer", *EXACT, "train.steps=21")
    assert labels(tmp_path / "longer", 6, capsys) == before
    of_step = labels(tmp_path / "longer", 12, capsys)
    assert sum(label is not None for label in of_step) / len(of_step) == pytest.approx(0.6 - 0.025 * 11, abs=0.03)


def test_a_plan_counts_its_largest_rate_for_memory_and_the_mean_for_work(run_file, capsys):
    configs = {rate: load(run_file, [f"data.mlm_probability={rate}", "train.steps=1000"]) for rate in
               ("[0.6, 0.1]", "0.6", "0.35")}  # fmt: skip
    needs = {rate: memory(config, 1) for rate, config in configs.items()}
    assert needs["[0.6, 0.1]"] == needs["0.6"] != needs["0.35"]
    mixture = {rate: open_corpora(config).train for rate, config in configs.items()}
    work = {rate: flops_of_sample(configs[rate], mixture[rate]) for rate in configs}
    assert work["[0.6, 0.1]"] == pytest.approx(work["0.35"], rel=1e-3)
    with pytest.raises(SystemExit):
        main(["plan", str(run_file), *FALLING])
    assert "masking      60.0% of the tokens at the first step, 10.0% at the last\n" in capsys.readouterr().out
