"""A gradient of exactly 0 is an error, unless the batch has no labels."""

import pytest

from lucid.backend import to_host
from lucid.distributed import StopRequest, connect
from lucid.errors import TrainingError
from lucid.training.config import load
from lucid.training.setup import open_run
from lucid.training.trainer import Trainer


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.emulated)])
def trainer_of(request, run_file):
    """A function that opens the run, of six steps, with some settings, on a device."""

    def make(*overrides):
        settings = load(run_file, ["train.steps=6", f"train.device={request.param}", *overrides])
        return Trainer(open_run(settings, connect("single", request.param)))

    return make


def test_a_gradient_of_zero_ends_training_before_a_checkpoint(trainer_of, monkeypatch):
    trainer = trainer_of("train.checkpoint_every=1")
    gradients = trainer._micro_batches.gradients

    def lost_from_the_third_step_on(batch, step, *weights):
        sums = gradients(batch, step, *weights)
        trainer.run.ddp.flat.gradients[...] *= step < 2
        return sums

    monkeypatch.setattr(trainer._micro_batches, "gradients", lost_from_the_third_step_on)
    with pytest.raises(
        TrainingError, match=r"^step 2: the gradient is exactly 0 although the batch has labels"
    ) as told:
        trainer.train(StopRequest())
    assert told.value.agreed
    checkpoints = sorted(path.name for path in (trainer.run.config.run_folder / "checkpoints").iterdir())
    assert checkpoints[-1] == "0001-00000002"


def test_a_batch_without_labels_does_not_end_training(trainer_of):
    trainer = trainer_of("data.mlm_probability=0", "data.nsp=false")
    assert trainer.train(StopRequest())
    assert not to_host(trainer.run.ddp.flat.gradients).any()
