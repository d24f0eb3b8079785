"""Sums over the steps between two lines of the log."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np

from lucid.distributed import Communicator, gather_rows
from lucid.models import BERTConfig
from lucid.models.bert.flops import forward_flops
from lucid.training.checkpoints.checkpoint import WindowSums
from lucid.training.log.rank_times import RankClock, Waits
from lucid.training.micro_batches import LocalBatch


class Window:
    """Sums over the steps since the last line of the log, on this rank; `totals` and `means` add up all ranks.

    `carried` are the sums that a resumed run starts with: those of `totals` on one rank, and zeros on the others.
    `carried_tokens` are the tokens of the run so far: likewise on one rank, or None on it if they are not known.
    `steps` counts the steps of this process. `rank_speeds` are the FLOP/s of each rank in the steps of the last line,
    without its waits: float64 [ranks].
    """

    def __init__(self, communicator: Communicator, carried: WindowSums, carried_tokens: int | None) -> None:
        self._communicator = communicator
        self._clock = RankClock(communicator)
        self._run_tokens, self._tokens_are_known = carried_tokens or 0, carried_tokens is not None
        self.rank_speeds = np.ones(communicator.size)
        self._clear()
        self._sums += carried

    def _clear(self) -> None:
        self._sums = np.zeros(6)
        self.steps = 0
        self._data_wait = 0.0
        self._tokens = self._flops = 0

    def add(self, sums: Sequence[float], masked_tokens: int, pairs: int) -> None:
        """Add the losses of a step: `sums` are its `STEP_SUMS`, and the counts are those of its labels."""
        mlm_loss, mlm_correct, nsp_loss, nsp_correct = sums
        self._sums += [mlm_loss, mlm_correct, masked_tokens, nsp_loss, nsp_correct, pairs]

    def add_step(self, data_wait: float, batch: LocalBatch, model: BERTConfig) -> None:
        """Count a step of `model` that waited `data_wait` seconds for its batch, this rank's part."""
        lengths = batch.batch.sequence_lengths
        tokens = int(lengths.sum())
        self.steps += 1
        self._data_wait += data_wait
        self._tokens += tokens
        self._run_tokens += tokens
        self._flops += forward_flops(model, lengths, batch.masked_tokens).training

    def totals(self) -> tuple[WindowSums, int | None]:
        """Return the sums over all ranks, and the tokens of the run so far, if they are known. All ranks call this.

        Float64 adds float32 losses of similar size without rounding, so that their order does not matter.
        """
        totals = np.append(self._sums, self._run_tokens)
        self._communicator.all_reduce(totals).wait()
        mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs, tokens = totals.tolist()
        sums = mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs
        return sums, int(tokens) if self._tokens_are_known else None

    def means(self, global_batch: int) -> dict[str, float]:
        """Return the means over all ranks and steps, by their names in the log, and clear the sums.

        Without sentence pairs there are no NSP metrics. Speeds and waits count the steps of this process alone. All
        ranks call this.
        """
        (mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs), run_tokens = self.totals()
        seconds, waited = self._clock.restart()
        own = np.array([seconds, waited, self._tokens, self._flops], np.float64)
        ranks = gather_rows(self._communicator, own)
        tokens, flops = ranks[:, 2:].sum(axis=0).tolist()
        # Between GPUs a wait counts a little later than it happens, so that there may be more of them than time.
        computed = np.maximum(ranks[:, 0] - ranks[:, 1], 0.01 * ranks[:, 0])
        self.rank_speeds = ranks[:, 3] / computed
        means = {
            "loss": mlm_loss / max(1, masked) + nsp_loss / max(1, pairs),
            "mlm_loss": mlm_loss / max(1, masked),
            "mlm_accuracy": mlm_correct / max(1, masked),
        }
        if pairs:
            means |= {"nsp_loss": nsp_loss / pairs, "nsp_accuracy": nsp_correct / pairs}
        means |= {
            "sequences_per_second": self.steps * global_batch / seconds,
            "tokens_per_second": tokens / seconds,
            "model_flops_per_second": flops / seconds,
            "data_wait": self._data_wait / seconds,
            **Waits.of(ranks[:, 0], ranks[:, 1]).metrics,
        }
        if run_tokens is not None:
            means["tokens"] = run_tokens
        self._clear()
        return means

    def paused(self) -> AbstractContextManager[None]:
        """Do not count the time of the block, which evaluates or saves."""
        return self._clock.paused()
