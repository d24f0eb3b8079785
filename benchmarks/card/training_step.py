"""A training step of lucid on a card, as `lucid.training.trainer` takes it: one micro-batch, the same each time."""

import numpy as np
from card.workloads import Workload
from peers.side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY

from lucid.backend import Array
from lucid.data import Batch
from lucid.distributed import Communicator, DistributedDataParallel
from lucid.models import BERTForPreTraining
from lucid.models.bert.memory import NumberSizes, activation_bytes
from lucid.optim import AdamW, clip_scale, global_norm
from lucid.streams import Readback
from lucid.training.graphs import GraphedMicroBatches, rounded_up
from lucid.training.micro_batches import share_of


class TrainingStep:
    """Trains a model in bfloat16, with AdamW and clipping, on `batch` of `Workload.batch`."""

    def __init__(
        self,
        model: BERTForPreTraining,
        communicator: Communicator,
        workload: Workload,
        batch: dict[str, np.ndarray],
        graphs: bool = True,
    ) -> None:
        self.workload, self.taken = workload, 0
        self.ddp = DistributedDataParallel(model.to(communicator.device), communicator, rounded=True)
        self.optimizer = AdamW(self.ddp.flat, BETAS, EPSILON, WEIGHT_DECAY)
        bfloat16 = NumberSizes(2, 2, keeps_scores=False)
        size = workload.rows, workload.length, workload.masked_tokens
        activations = activation_bytes(model.config, bfloat16, "none", *size)
        self._micro_batches = GraphedMicroBatches(self.ddp, 0, communicator, graphs, activations)
        whole = {"sequence_ids": np.ones_like(batch["input_ids"]), "samples": np.arange(workload.rows)}
        self.share = share_of(model, Batch(**batch, **whole), None)

    def take(self) -> Readback:
        """Ask for a step, and return its figures on their way: those of `MicroBatches.gradients`, then the norm."""
        weights = 1 / self.workload.masked_tokens, 1 / self.workload.rows
        figures = self._micro_batches.gradients(self.share, self.taken, *weights)
        figures[-1] = norm = global_norm(self.ddp.flat)
        self.optimizer.step(LEARNING_RATE, clip_scale(norm, MAX_NORM))
        self.taken += 1
        return Readback(figures)

    def loss(self, figures: Array) -> float:
        """Return the loss that the figures of a step say, in host memory."""
        mlm, _, nsp, *_ = figures.tolist()
        return mlm / self.workload.masked_tokens + nsp / self.workload.rows


def shapes_of(step: TrainingStep) -> tuple[int, int, int]:
    """Return the rows, labelled rows and sequences that a step computes on, made-up ones included."""
    [part] = step.share.micro_batches
    return rounded_up(part.rows.shape, part.rows.rows.batch, step.workload.length)
