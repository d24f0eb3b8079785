"""Predicts for how long evaluations and checkpoints interrupt a run, from what `step_measurement.py` has measured."""

from dataclasses import dataclass

from lucid.analysis.prediction.link_model import Link
from lucid.analysis.prediction.step_model import Measured, crowding
from lucid.training.config import RunConfig

_FLOAT32 = 4


@dataclass(frozen=True)
class Pauses:
    """How often a run evaluates and begins a checkpoint, and the seconds of each time."""

    evaluations: int
    evaluation_seconds: float
    checkpoints: int
    checkpoint_seconds: float

    @property
    def seconds(self) -> float:
        """The seconds of all."""
        return self.evaluations * self.evaluation_seconds + self.checkpoints * self.checkpoint_seconds


def pauses(config: RunConfig, measured: Measured, link: Link | None, nodes: int, ranks_per_node: int) -> Pauses:
    """Return the pauses of a whole run on `nodes` nodes.

    Checkpoints are written in the background, but for the last one, which is not counted.
    """
    train, size = config.train, nodes * ranks_per_node
    slower = crowding(measured, ranks_per_node) * measured.turns(ranks_per_node)
    slower /= measured.turns(measured.ranks_per_node)
    batch, evaluated = config.shared_by(size).evaluation_batch, 0
    for samples in measured.held_out:
        batches = -(-min(train.evaluation_samples, samples) // batch)
        evaluated += -(-batches // size) * batch
    every = train.evaluate_every or train.steps
    gathered = 0.0
    if config.optimizer.sharded and link and nodes > 1:
        moments = 2 * _FLOAT32 * measured.parts[-1].stop
        gathered = moments * (nodes - 1) / nodes / link.rate
    return Pauses(
        evaluations=-(-train.steps // every) if measured.held_out else 0,
        evaluation_seconds=slower * evaluated * measured.evaluation_seconds,
        checkpoints=(train.steps - 1) // train.checkpoint_every,
        checkpoint_seconds=measured.checkpoint_seconds + gathered,
    )
