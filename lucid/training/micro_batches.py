"""Forward and backward of a rank's part of the global batch, one micro-batch after the other.

On a GPU, CUDA graphs replay the same work (`graphs.py`).
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from lucid import random
from lucid.backend import Array, array_module
from lucid.data import Batch
from lucid.distributed import DistributedDataParallel
from lucid.models import BERTForPreTraining
from lucid.models.bert.token_rows import LabelledRows

# What a step adds up on the device, in this order: sums of losses, and counts of correct predictions.
STEP_SUMS = "mlm_loss", "mlm_correct", "nsp_loss", "nsp_correct"


@dataclass(frozen=True)
class MicroBatch:
    """Token rows in host memory, and the index in the global batch of the sample in each grid row: int64 [B]."""

    rows: LabelledRows
    samples: np.ndarray


@dataclass(frozen=True)
class LocalBatch:
    """A rank's part of a global batch: as the sampler made it, and as micro-batches."""

    batch: Batch
    micro_batches: tuple[MicroBatch, ...]

    @classmethod
    def split(cls, batch: Batch, micro_batch: int | None) -> "LocalBatch":
        """Split a batch into micro-batches of at most `micro_batch` grid rows. Runs in the loader's threads."""
        size, parts = micro_batch or len(batch.samples), []
        for start in range(0, len(batch.samples), size):
            part = batch.slice(start, start + size)
            parts.append(MicroBatch(labelled_rows(part), part.samples.astype(np.int64, copy=False)))
        return cls(batch, tuple(parts))

    @property
    def masked_tokens(self) -> int:
        """The number of tokens with an MLM label."""
        return sum(part.rows.masked for part in self.micro_batches)

    @property
    def pairs(self) -> int:
        """The number of sequences with an NSP label."""
        return sum(part.rows.pairs for part in self.micro_batches)


def labelled_rows(batch: Batch) -> LabelledRows:
    """Return the token rows of a batch and their labels, in host memory."""
    return LabelledRows.packed(
        batch.input_ids, batch.sequence_ids, batch.token_type_ids, batch.mlm_labels, batch.nsp_labels
    )


@dataclass(frozen=True)
class StepInputs:
    """The inputs of a micro-batch besides its rows: the coordinates of its dropout, and the weights of its losses.

    On a GPU, the numbers that change from step to step are arrays on the device, the weights of shape [].
    """

    coordinates: random.Coordinates
    mlm_weight: float | Array
    nsp_weight: float | Array

    @classmethod
    def from_arrays(cls, seed: int, arrays: Mapping[str, Array]) -> "StepInputs":
        """Return the inputs whose values the arrays of `arrays()`, or copies on a device, hold."""
        coordinates = random.Coordinates(seed, arrays["counters"])
        return cls(coordinates, arrays["mlm_weight"], arrays["nsp_weight"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all values but the seed as NumPy arrays, by name."""
        return {
            "counters": self.coordinates.counters,
            "mlm_weight": np.asarray(self.mlm_weight, np.float32),
            "nsp_weight": np.asarray(self.nsp_weight, np.float32),
        }


class MicroBatches:
    """Runs micro-batches on `ddp`, drawing dropout from `seed`."""

    def __init__(self, ddp: DistributedDataParallel[BERTForPreTraining], seed: int) -> None:
        self.ddp, self.seed = ddp, seed

    def gradients(self, batch: LocalBatch, step: int, mlm_weight: float, nsp_weight: float) -> Array:
        """Compute the gradients of the weighted losses into the flat buffer, summed over ranks.

        Returns the `STEP_SUMS` of this rank on the device, and a last element for the caller: float64 [5].
        """
        sums = zero_sums(self.ddp.flat.gradients)
        self.ddp.zero_grad()
        last = len(batch.micro_batches) - 1
        for number, part in enumerate(batch.micro_batches):
            inputs = StepInputs(random.Coordinates.of(self.seed, step, part.samples), mlm_weight, nsp_weight)
            with nullcontext() if number == last else self.ddp.accumulate():
                sums += self.run(part.rows, inputs, (number == 0, number == last))
        return sums

    def run(self, rows: LabelledRows, inputs: StepInputs, ends: tuple[bool, bool]) -> Array:
        """Run a micro-batch and return its sums. `ends`: whether it is the first, and the last, of its step."""
        sums = zero_sums(self.ddp.flat.gradients)
        self._backward(rows, inputs, sums)
        return sums

    def _backward(self, rows: LabelledRows, inputs: StepInputs, sums: Array) -> None:
        """Run a micro-batch and write its sums to `sums`."""
        with random.at(inputs.coordinates):
            mlm, nsp = self.ddp.module.losses(rows)
            (mlm.loss * inputs.mlm_weight + nsp.loss * inputs.nsp_weight).backward()
        for number, value in enumerate((mlm.loss.data, mlm.correct, nsp.loss.data, nsp.correct)):
            sums[number] = value


def zero_sums(like: Array) -> Array:
    """Return zeros for the sums of a step or a micro-batch, on the device of `like`: float64 [5]."""
    return array_module(like).zeros(len(STEP_SUMS) + 1)
