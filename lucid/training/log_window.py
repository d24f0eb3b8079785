"""Sums over the steps between two lines of the log."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from lucid.distributed import Communicator

# Loss, correct predictions and labels of MLM, then of NSP.
WindowSums = tuple[float, float, float, float, float, float]


class Window:
    """Sums over the steps since the last line of the log, on this rank; `totals` and `means` add up all ranks.

    `carried` are the sums that a resumed run starts with: those of `totals` on one rank, and zeros on the others.
    `steps` counts the steps of this process.
    """

    def __init__(self, communicator: Communicator, carried: WindowSums) -> None:
        self._communicator = communicator
        self._clear()
        self._sums += carried

    def _clear(self) -> None:
        self._sums = np.zeros(6)
        self.steps = 0
        self._started = time.perf_counter()
        self._data_wait = 0.0
        self._flops = 0

    def add(self, sums: Sequence[float], masked_tokens: int, pairs: int) -> None:
        """Add the losses of a step: `sums` are its `STEP_SUMS`, and the counts are those of its labels."""
        mlm_loss, mlm_correct, nsp_loss, nsp_correct = sums
        self._sums += [mlm_loss, mlm_correct, masked_tokens, nsp_loss, nsp_correct, pairs]

    def add_step(self, data_wait: float, flops: int) -> None:
        """Count a step that waited `data_wait` seconds for its batch and has `flops` FLOPs on this rank."""
        self.steps += 1
        self._data_wait += data_wait
        self._flops += flops

    def totals(self) -> WindowSums:
        """Return the sums over all ranks. All ranks call this.

        Float64 adds float32 losses of similar size without rounding, so that their order does not matter.
        """
        totals = self._sums.copy()
        self._communicator.all_reduce(totals).wait()
        mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs = totals.tolist()
        return mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs

    def means(self, global_batch: int) -> dict[str, float]:
        """Return the means over all ranks and steps, by their names in the log, and clear the sums.

        Without sentence pairs there are no NSP metrics. Speeds count the steps of this process alone. All ranks call
        this.
        """
        mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs = self.totals()
        flops = self._communicator.all_reduce_scalar(self._flops)
        seconds = time.perf_counter() - self._started
        means = {
            "loss": mlm_loss / max(1, masked) + nsp_loss / max(1, pairs),
            "mlm_loss": mlm_loss / max(1, masked),
            "mlm_accuracy": mlm_correct / max(1, masked),
        }
        if pairs:
            means |= {"nsp_loss": nsp_loss / pairs, "nsp_accuracy": nsp_correct / pairs}
        means |= {
            "sequences_per_second": self.steps * global_batch / seconds,
            "model_flops_per_second": flops / seconds,
            "data_wait": self._data_wait / seconds,
        }
        self._clear()
        return means

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time of the block, which evaluates or saves."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began
