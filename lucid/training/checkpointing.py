"""Saves a run, together on all of its ranks: the first one writes, and gathers the moments that others hold."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from lucid.data.tokenizer import load_tokenizer, tokenizer_files
from lucid.distributed import all_or_none, is_agreed
from lucid.errors import EndedBySignal
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.checkpoints.saver import Saver
from lucid.training.run_on_rank import Run


class Checkpointing:
    """Writes the checkpoints of `run`. Within `with checkpointing:`, one may be written in the background.

    All ranks call `begin` and `save` together, with equal weights.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        # On the first rank, once it has claimed an attempt.
        self._saver: Saver | None = None

    def claim(self, report: Callable[[str], None]) -> None:
        """Claim an attempt on the first rank, which hears of failures in the background by `report`."""
        run = self._run
        if run.is_first:
            tokenizer = load_tokenizer(run.corpora.tokenizer_folder)
            train = run.config.train
            attempt = run.store.claim(
                train.keep_checkpoints, run.checkpoint, every=train.keep_every, best=train.keeps_best
            )
            run.attempt = attempt.number
            files = tokenizer_files(tokenizer, run.model.config.max_position_embeddings)
            # A branch begins at a step of another run, whose checkpoint is not its own.
            saved_step = run.step if run.checkpoint or run.step == 0 else None
            self._saver = Saver(attempt, run.model, run.optimizer, files, saved_step, report, run.best)

    def begin(self, state: TrainingState) -> None:
        """Begin a checkpoint, which the first rank writes while training goes on."""
        if self._saver:
            with self._saving():
                self._saver.begin(state)
        elif self._is_sharded:
            self._run.optimizer.moments()  # sends this rank's shard to the first

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint while training waits, unless there is one of this step. All ranks raise a failure."""
        run, saver = self._run, self._saver
        unsaved = False
        if saver:
            with self._saving():
                unsaved = not saver.has_saved(state)
        wanted = run.communicator.all_reduce_scalar(unsaved) > 0
        moments = run.optimizer.moments() if wanted and (saver or self._is_sharded) else {}

        def write() -> None:
            if saver and unsaved:
                with self._saving():
                    saver.save(state, moments)

        all_or_none(run.communicator, write)
        if saver:
            run.checkpoint = saver.newest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the checkpoint in the background, unless this rank alone failed: the others wait for it to end.

        A second Ctrl-C does not wait either.
        """
        if isinstance(error, EndedBySignal):
            return
        in_order = error is None or is_agreed(error)
        if self._saver and (in_order or self._run.communicator.size == 1):
            with self._saving():
                self._saver.wait()

    @property
    def _is_sharded(self) -> bool:
        """Whether the first rank lacks moments that this rank holds."""
        return not self._run.ddp.partition.is_whole

    def _saving(self) -> AbstractContextManager[None]:
        """Let the other ranks wait for long within the block: the disk may be slow."""
        return self._run.communicator.status.phase("saving a checkpoint")
