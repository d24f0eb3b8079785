"""Training steps of lucid on a card, as `lucid.training.trainer` takes them."""

import numpy as np
from card.workloads import Workload
from peers.side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY

from lucid.backend import Array
from lucid.data import Batch
from lucid.distributed import Communicator, DistributedDataParallel
from lucid.gpu_async import HostCopy
from lucid.models import BERTForPreTraining
from lucid.models.bert.memory import NumberSizes, activation_bytes
from lucid.optim import AdamW, clip_scale, global_norm
from lucid.training.graphs import GraphedMicroBatches, rounded_up
from lucid.training.micro_batches import LocalBatch


class Training:
    """Trains a model with AdamW and clipping, in bfloat16 if `rounded`, and by CUDA graphs if `graphs`.

    A micro-batch has at most `rows` x `length` slots, `labelled` of which are labelled.
    """

    def __init__(
        self,
        model: BERTForPreTraining,
        communicator: Communicator,
        size: tuple[int, int, int],
        rounded: bool = True,
        graphs: bool = True,
    ) -> None:
        self.ddp = DistributedDataParallel(model.to(communicator.device), communicator, bfloat16_copy=rounded)
        self.optimizer = AdamW(self.ddp.partition, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
        numbers = NumberSizes(2, 2, keeps_scores=False) if rounded else NumberSizes(4, 4, keeps_scores=False)
        activations = activation_bytes(model.config, numbers, "none", *size)
        self._micro_batches = GraphedMicroBatches(self.ddp, 0, communicator, graphs, activations)
        self._taken = 0

    def take(self, batch: LocalBatch, masked_tokens: int, pairs: int) -> HostCopy:
        """Ask for a step, and return its sums on their way: those of `MicroBatches.gradients`, then the gradient norm.

        `masked_tokens` and `pairs` are those of the global batch.
        """
        sums = self._micro_batches.gradients(batch, self._taken, 1 / masked_tokens, 1 / pairs)
        sums[-1] = norm = global_norm(self.ddp.partition)
        self.optimizer.step(LEARNING_RATE, clip_scale(norm, MAX_NORM))
        self._taken += 1
        return HostCopy(sums)


class TrainingStep:
    """Takes steps in bfloat16 on `batch` of `Workload.batch`, as one micro-batch."""

    def __init__(
        self,
        model: BERTForPreTraining,
        communicator: Communicator,
        workload: Workload,
        batch: dict[str, np.ndarray],
        graphs: bool = True,
    ) -> None:
        self.workload = workload
        size = workload.rows, workload.length, workload.masked_tokens
        self._training = Training(model, communicator, size, graphs=graphs)
        whole = {"sequence_ids": np.ones_like(batch["input_ids"]), "samples": np.arange(workload.rows)}
        self.batch = LocalBatch.split(Batch(**batch, **whole), None)

    def take(self) -> HostCopy:
        """Ask for a step, and return its sums on their way, as of `Training.take`."""
        return self._training.take(self.batch, self.workload.masked_tokens, self.workload.rows)

    def loss_and_norm(self, sums: Array) -> tuple[float, float]:
        """Return the loss and the gradient's norm from the sums of a step, in host memory."""
        mlm, _, nsp, _, norm = sums.tolist()
        return mlm / self.workload.masked_tokens + nsp / self.workload.rows, norm


def shapes_of(step: TrainingStep) -> tuple[int, int, int]:
    """Return the rows, labelled rows and sequences that a step computes on, made-up ones included."""
    [part] = step.batch.micro_batches
    return rounded_up(part.rows.shape, part.rows.grid_rows, step.workload.length)
