"""Forward and backward of a rank's share of a global batch, micro-batch by micro-batch.

On a GPU the same work is launched as CUDA graphs from the second time on (`graphs.py`).
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

# What a step adds up on the device, in this order: sums of the losses, and counts of right predictions.
FIGURES = "mlm_loss", "mlm_correct", "nsp_loss", "nsp_correct"


@dataclass(frozen=True)
class MicroBatch:
    """Token rows in host memory, and the index in the global batch of the sample in each grid row: int64 [B]."""

    rows: LabelledRows
    samples: np.ndarray


@dataclass(frozen=True)
class Share:
    """A rank's share of a global batch: as it was sampled, and as micro-batches."""

    batch: Batch
    micro_batches: tuple[MicroBatch, ...]

    @property
    def masked_tokens(self) -> int:
        """How many tokens the MLM loss is over."""
        return sum(part.rows.masked for part in self.micro_batches)

    @property
    def pairs(self) -> int:
        """How many sequences the NSP loss is over."""
        return sum(part.rows.pairs for part in self.micro_batches)


def share_of(batch: Batch, micro_batch: int | None) -> Share:
    """Cut a batch into micro-batches of at most `micro_batch` grid rows. Runs in the loader's threads."""
    size, parts = micro_batch or len(batch.samples), []
    for start in range(0, len(batch.samples), size):
        part = batch.rows(start, start + size)
        parts.append(MicroBatch(labelled_rows(part), part.samples.astype(np.int64, copy=False)))
    return Share(batch, tuple(parts))


def labelled_rows(batch: Batch) -> LabelledRows:
    """Return the token rows of a batch and their labels, in host memory."""
    return LabelledRows.packed(
        batch.input_ids, batch.sequence_ids, batch.token_type_ids, batch.mlm_labels, batch.nsp_labels
    )


@dataclass(frozen=True)
class Place:
    """What one micro-batch is computed with beside its rows: where dropout draws, and what losses are multiplied by.

    On a GPU the numbers that change from step to step are arrays without axes on the device.
    """

    coordinates: random.Coordinates
    mlm_weight: float | Array
    nsp_weight: float | Array

    @classmethod
    def of(cls, seed: int, arrays: Mapping[str, Array]) -> "Place":
        """Return the place that `arrays` hold, those of `numbers`, on the device."""
        coordinates = random.Coordinates(seed, arrays["counters"])
        return cls(coordinates, arrays["mlm_weight"], arrays["nsp_weight"])

    def numbers(self) -> dict[str, np.ndarray]:
        """Return all but the seed as NumPy arrays, by name."""
        weights = np.asarray(self.mlm_weight, np.float32), np.asarray(self.nsp_weight, np.float32)
        return {"counters": self.coordinates.counters, "mlm_weight": weights[0], "nsp_weight": weights[1]}


class MicroBatches:
    """Runs micro-batches on `ddp`, drawing dropout from `seed`."""

    def __init__(self, ddp: DistributedDataParallel[BERTForPreTraining], seed: int) -> None:
        self.ddp, self.seed = ddp, seed

    def gradients(self, share: Share, step: int, mlm_weight: float, nsp_weight: float) -> Array:
        """Leave the gradients of the weighted losses in the flat buffer, summed over ranks.

        Return the sums `FIGURES` of this rank: float64 [4] on the device, with room for one number more.
        """
        flat = self.ddp.flat
        figures = no_figures(flat.gradients)
        self.ddp.zero_grad()
        last = len(share.micro_batches) - 1
        for number, part in enumerate(share.micro_batches):
            place = Place(random.Coordinates.of(self.seed, step, part.samples), mlm_weight, nsp_weight)
            with nullcontext() if number == last else self.ddp.accumulate():
                figures += self.run(part.rows, place, (number == 0, number == last))
        return figures

    def run(self, rows: LabelledRows, place: Place, ends: tuple[bool, bool]) -> Array:
        """Run one micro-batch and return its part of the figures. `ends`: is it the step's first, is it its last?"""
        figures = no_figures(self.ddp.flat.gradients)
        self._backward(rows, place, figures)
        return figures

    def _backward(self, rows: LabelledRows, place: Place, figures: Array) -> None:
        """Run one micro-batch, and write its part of the figures."""
        with random.at(place.coordinates):
            mlm, nsp = self.ddp.module.losses(rows)
            (mlm.loss * place.mlm_weight + nsp.loss * place.nsp_weight).backward()
        for number, value in enumerate((mlm.loss.data, mlm.correct, nsp.loss.data, nsp.correct)):
            figures[number] = value


def no_figures(like: Array) -> Array:
    """Return zeros for the figures of a step or a micro-batch, where `like` is: float64 [5]."""
    return array_module(like).zeros(len(FIGURES) + 1)
