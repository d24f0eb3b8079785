"""Writes a run's checkpoints in the background, while training goes on after copying its state. First rank only.

The buffers of the copy are kept for the next checkpoint, because fetching fresh pages takes longer than copying. The
last checkpoint of a run is written from the arrays themselves, which no longer change. So a run that saves only at its
end needs no memory for copies, except for sharded moments, which are gathered here.
"""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lucid.errors import CheckpointError
from lucid.models import BERTForPreTraining
from lucid.optim.moments import MomentOptimizer
from lucid.training.checkpoints.best import Best
from lucid.training.checkpoints.checkpoint import Snapshot, TrainingState
from lucid.training.checkpoints.store import Attempt

Arrays = dict[str, np.ndarray]


class Saver:
    """Saves the state of `model` and `optimizer`, one checkpoint at a time.

    The run has a checkpoint of step `saved_step` already, unless that is None. The thread that writes calls `report`
    with one sentence if a checkpoint in the background fails, and once if a later attempt of the run has begun.
    """

    def __init__(
        self,
        attempt: Attempt,
        model: BERTForPreTraining,
        optimizer: MomentOptimizer,
        tokenizer_files: Mapping[str, bytes],
        saved_step: int | None,
        report: Callable[[str], None],
        saved_best: Best | None = None,
    ) -> None:
        self._attempt = attempt
        self._model, self._optimizer = model, optimizer
        self._tokenizer_files = tokenizer_files
        self._saved_step, self._saved_best = saved_step, saved_best
        self._report = report
        self._weights: Arrays = {}
        self._moments: Arrays = {}
        self._thread: threading.Thread | None = None
        self._has_reported_later_attempt = False

    @property
    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        return self._attempt.newest

    def begin(self, state: TrainingState) -> None:
        """Wait for the checkpoint under way, if any; then copy the arrays and begin to write them.

        If the optimizer is sharded, the other ranks call `optimizer.moments` at the same time.
        """
        self.wait()
        _copy(self._model.state_dict(), self._weights)
        snapshot = self._snapshot(state, self._weights, self._optimizer.moments(self._moments))
        # A daemon thread: a process that has to end at once does not wait for it.
        self._thread = threading.Thread(target=self._write_aside, args=(snapshot,), name="checkpoint", daemon=True)
        self._thread.start()

    def has_saved(self, state: TrainingState) -> bool:
        """Wait for the checkpoint under way, if any, and return whether there is one of `state`.

        It also has to know the best step, if that is kept.
        """
        self.wait()
        knows_best = state.best == self._saved_best or not self._attempt.keeps_best
        return state.step == self._saved_step and knows_best

    def save(self, state: TrainingState, moments: Arrays) -> None:
        """Write a checkpoint at once, without copies. Raises `CheckpointError` if it cannot be written."""
        self._write(self._snapshot(state, self._model.state_dict(), moments))

    def wait(self) -> None:
        """Wait for the checkpoint under way, if any."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _snapshot(self, state: TrainingState, weights: Arrays, moments: Arrays) -> Snapshot:
        return Snapshot(state, self._model.config, weights, moments, self._tokenizer_files)

    def _write_aside(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except CheckpointError as error:
            self._report(f"{error}; training goes on, and saves again when the next checkpoint is due")

    def _write(self, snapshot: Snapshot) -> None:
        self._attempt.save(snapshot)
        self._saved_step, self._saved_best = snapshot.state.step, snapshot.state.best
        if self._attempt.is_stale and not self._has_reported_later_attempt:
            self._has_reported_later_attempt = True
            self._report(
                f"another process has started the run in {self._attempt.folder.parent} since: end this one, whose "
                "checkpoints are not resumed from any more"
            )


def _copy(arrays: Arrays, kept: Arrays) -> None:
    """Copy `arrays` into those of the same names in `kept`, which the first call fills."""
    for name, array in arrays.items():
        if name not in kept:
            kept[name] = np.empty_like(array)
        kept[name][...] = array
