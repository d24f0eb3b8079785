"""The start of a run: weights that are loaded or received are not drawn first."""

import pytest

from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.distributed.health import software
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import load
from lucid.training.setup import _open_alone, open_run
from lucid.training.trainer import Trainer


class OneOfTwo(SingleCommunicator):
    """A rank that appears as the second of two, as long as it does not communicate."""

    rank, size = 1, 2


def test_only_the_first_rank_draws_initial_weights(run_file, draws):
    config = load(run_file)
    store = CheckpointStore(config.run_folder / "checkpoints")
    _open_alone(config, OneOfTwo(), store)
    assert not draws
    model = _open_alone(config, SingleCommunicator(), store)[1]
    drawn = [array.size for name, array in model.state_dict().items() if "LayerNorm" not in name and "bias" not in name]
    assert sum(draws) == sum(drawn)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["data.mlm_probability=0"], "no token is predicted, so next-sentence prediction alone is trained"),
        (["data.mlm_probability=[0, 0]", "data.nsp=false"], "no token is predicted, so nothing is trained"),
        (["data.mlm_probability=[0.1, 0]"], ""),
    ],
)
def test_a_run_that_masks_nothing_says_so(settings, sentence, run_file):
    messages = [text for text in open_run(load(run_file, settings), SingleCommunicator()).messages if "mlm_" in text]
    assert messages == [f"data.mlm_probability is 0: {sentence}"] * bool(sentence)


def test_a_resumed_run_draws_no_weights(run_file, draws):
    config = load(run_file, ["train.steps=6"])
    with StopRequest() as stop:
        Trainer(open_run(config, SingleCommunicator())).train(stop)
    draws.clear()
    assert open_run(config, SingleCommunicator()).step == 6
    assert not draws


def test_checkpoints_note_the_software_of_the_start_of_the_run(run_file, monkeypatch):
    run = open_run(load(run_file), SingleCommunicator())
    started = software.versions()
    # An upgrade while the run trains: the process goes on with what it has loaded.
    monkeypatch.setattr(software, "_digest", lambda folder: "another")
    assert run.state((0.0,) * 6, 0).software == started
    assert open_run(load(run_file), SingleCommunicator()).state((0.0,) * 6, 0).software != started


def test_a_run_that_starts_from_a_model_draws_no_weights(run_file, draws, tmp_path):
    config = load(run_file)
    BERTForPreTraining(config.model).save_pretrained(tmp_path / "model")
    draws.clear()
    open_run(load(run_file, [f"initial_model={tmp_path / 'model'}"]), SingleCommunicator())
    assert not draws
