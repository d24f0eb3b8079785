"""The training loop, short enough to read in one sitting.

One step: take the global label counts and the stop flag, which ranks summed during the step before; compute the
gradients of this rank's part of the batch in micro-batches, summed over ranks during the last one's backward; clip by
the global norm; update the weights.

On a GPU the host launches the next step at once, and settles the outcome of a step later (`outcomes.py`).
"""

import time
from collections.abc import Iterator
from functools import partial

from lucid.data import Loader
from lucid.distributed import Stop, StopRequest, agreed, all_or_none, find_drift
from lucid.errors import TrainingError
from lucid.gpu_async import HostCopy
from lucid.optim import clip_scale, norm_of, squared_gradients
from lucid.training.attempts import note_start
from lucid.training.audits import Audits
from lucid.training.checkpointing import Checkpointing
from lucid.training.checkpoints.best import best_after
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.counts.losses import bigram_loss
from lucid.training.dealing import Dealer
from lucid.training.evaluation import evaluate
from lucid.training.log.norms_by_layer import NormsByLayer
from lucid.training.log.window import Window
from lucid.training.micro_batches import LocalBatch
from lucid.training.outcomes import Outcome, Outcomes
from lucid.training.reports import FirstRankReports, Reports
from lucid.training.run_on_rank import Run
from lucid.training.schedule import schedule_of
from lucid.training.step_message import ControlMessage, StepControl
from lucid.training.trace import Trace
from lucid.training.trial import micro_batches_of


class Trainer:
    """Trains one run, on this rank; a replay gets `reports` of its own."""

    def __init__(self, run: Run, reports: Reports | None = None) -> None:
        self.run = run
        self._micro_batches = run.micro_batches or micro_batches_of(run.config, run.ddp, run.communicator)
        self.settings = run.config.train
        self._schedule = schedule_of(run.config)
        self._dealer = Dealer(run.config, run.corpora.train, run.communicator.size)
        self._window = Window(run.communicator, run.window, run.tokens)
        self._norms = NormsByLayer(run.ddp.flat)
        self._outcomes = Outcomes(run, self._window, self._norms)
        self._checkpointing = Checkpointing(run)
        self._audits = Audits(run, self._micro_batches)
        self._trace = Trace(run, self._micro_batches, self._window)
        self.reports = reports or Reports()
        self._replicas_checked = run.step
        self._evaluated = -1

    def train(self, stop: Stop) -> bool:
        """Train until the last step, the end of `train.max_hours` or `train.patience`, or a stop request on any rank.

        Return whether the run has ended. In any case the last step taken is in a checkpoint afterwards.
        """
        all_or_none(self.run.communicator, self._open_outputs)
        tracing = self._trace.armed(self.reports.say)
        with self.reports, self._checkpointing, tracing, self.batches(self.settings.steps) as batches:
            if self.run.config.branch_from is not None:
                # Where the other run stands may change, so the branch keeps where it began.
                self._checkpointing.save(self._checked_state())
            ended = self.loop(self._trace.fetched(batches), stop)
            if ended and self._window.steps:
                self._report()
            if ended and self._evaluated != self.run.step:
                self._evaluate()
            self._checkpointing.save(self._checked_state())
        return ended

    def replay(self, step: int, reported: bool) -> TrainingState:
        """Take the steps up to `step` and return the state, without writing anything. All ranks call this.

        `reported` says whether the last steps are reported, as those at the end of a run are.
        """
        with self.batches(step) as batches:
            self.loop(batches, StopRequest())
        if reported and self._window.steps:
            self._report()
        return self._checked_state()

    def _open_outputs(self) -> None:
        """Open all that the first rank writes. The run is valid by now, so that it may claim an attempt."""
        run = self.run
        if run.is_first:
            ended = self._has_ended(self._schedule.progress(run.step, run.training_seconds))
            self.reports = FirstRankReports(run, ended)
            self._checkpointing.claim(self.reports.say)
            note_start(run, self.reports.say)

    def batches(self, stop: int) -> Loader[LocalBatch]:
        """Return this rank's parts of the global batches, from the present step to before step `stop`."""
        run, data = self.run, self.run.config.data
        make_batch = partial(self._local_batch, run.step, run.samples_consumed)
        return Loader(self._trace.making(make_batch), run.step, stop, data.workers, data.prefetch)

    def _local_batch(self, first_step: int, first_sample: int, step: int, rank: int | None = None) -> LocalBatch:
        """Return the part of the global batch of `step` that `rank`, or else this one, has. Threads call this."""
        consumed = first_sample + (step - first_step) * self.settings.global_batch
        rows = self._dealer.rows(self.run.communicator.rank if rank is None else rank, step, consumed)
        batch = self.run.corpora.train.batch(consumed, rows, self.run.config.masking_rate.at(step))
        return LocalBatch.split(batch, self.settings.micro_batch_size)

    def loop(self, batches: Iterator[LocalBatch], stop: Stop) -> bool:
        """Take steps until the batches or the time end (True), or a stop is requested (False)."""
        run, settings = self.run, self.settings
        following = next(batches, None)
        message = self._announce(following, stop)
        while following is not None and message is not None:
            self._trace.before_step()
            began = time.perf_counter()
            batch, control = following, message.wait()
            progress = self._schedule.progress(run.step, control.seconds)
            if self._has_ended(progress):
                return True
            if control.stop:
                return False
            fetching = time.perf_counter()
            following = next(batches, None)
            data_wait = time.perf_counter() - fetching
            self._window.add_step(data_wait, batch, run.config.model)
            message = self._announce(following, stop)
            self._step(batch, control, progress)
            run.training_seconds += time.perf_counter() - began
            if self._due(settings.check_replicas_every):
                self._check_replicas()
            # Evaluate first: if the run is killed in between, it repeats the evaluation.
            if self._due(settings.evaluate_every) and following:
                self._evaluate()
            is_best = settings.keeps_best and run.best is not None and run.best.step == run.step
            if (is_best or self._due(settings.checkpoint_every)) and following:
                with self._window.paused():
                    self._checkpointing.begin(self._checked_state())
        return True

    def _announce(self, batch: LocalBatch | None, stop: Stop) -> ControlMessage | None:
        """Send the message about the next batch, if there is one."""
        run = self.run
        return ControlMessage(run.communicator, batch, run.training_seconds, stop.requested) if batch else None

    def _has_ended(self, progress: float) -> bool:
        return progress >= self.settings.steps or self.run.has_stopped_early

    def _is_reported(self, step: int) -> bool:
        """Return whether the log has a line about the steps up to `step`, unless the run stops before."""
        return step % self.settings.log_every == 0 or step == self.settings.steps

    def _due(self, every: int | None) -> bool:
        return every is not None and self.run.step % every == 0

    def _step(self, batch: LocalBatch, control: StepControl, progress: float) -> None:
        """Take one step. If the gradient is not finite, data and schedule advance, but weights and moments do not."""
        run = self.run
        run.communicator.status.step = run.step
        learning_rate = self._schedule.learning_rate(progress)
        weights = 1 / max(1, control.masked_tokens), 1 / max(1, control.pairs)
        self._audits.check(partial(self._local_batch, run.step, run.samples_consumed, run.step), weights)
        sums = self._micro_batches.gradients(batch, run.step, *weights)
        squares = squared_gradients(run.ddp.partition)
        sums[-1] = norm = norm_of(run.ddp.partition, squares)
        scale = clip_scale(norm, run.config.optimizer.max_gradient_norm)
        changes = run.optimizer.step(learning_rate, scale, measured=self._is_reported(run.step + 1))
        outcome = Outcome(
            step=run.step,
            learning_rate=learning_rate,
            has_labels=control.masked_tokens + control.pairs > 0,
            masked_tokens=batch.masked_tokens,
            pairs=batch.pairs,
            sums=HostCopy(sums),
            squares=None if changes is None else self._norms.copy(squares, changes),
        )
        run.step += 1
        run.samples_consumed += self.settings.global_batch
        self._outcomes.add(outcome)
        self.reports.advance(run.step)
        if self._due(self.settings.log_every):
            self._report()

    def _report(self) -> None:
        """Report the steps since the last report."""
        self._outcomes.settle()
        steps, means = self._window.steps, self._window.means(self.settings.global_batch)
        self._dealer.learn(self.run.step, self._window.rank_speeds, steps)
        most_seconds = self._schedule.max_seconds - self.run.training_seconds
        self.reports.training(self.run.step, means | self._outcomes.metrics, most_seconds)

    def _evaluate(self) -> None:
        run = self.run
        if not run.corpora.held_out and not run.probes:
            return
        self._outcomes.settle()
        self._evaluated = run.step
        with self._window.paused(), run.communicator.status.phase("evaluating"):
            evaluations = evaluate(
                run.model,
                run.corpora.held_out,
                run.communicator,
                samples=self.settings.evaluation_samples,
                batch_size=run.config.shared_by(run.communicator.size).evaluation_batch,
                bigram_loss=partial(bigram_loss, run.counts),
                probes=run.probes,
            )
        run.best = best_after(run.best, run.step, evaluations.loss, run.corpora.held_out_samples)
        self.reports.evaluation(run.step, evaluations)

    def _checked_state(self) -> TrainingState:
        """Return the state of the run, after a check that all ranks hold the same weights. All ranks call this."""
        self._outcomes.settle()
        if self.run.step > self._replicas_checked:
            self._check_replicas()
        return self.run.state(*self._window.totals())

    def _check_replicas(self) -> None:
        """Raise `TrainingError` if the ranks do not hold the same weights. All ranks call this."""
        self._outcomes.settle()
        run = self.run
        drift = find_drift(run.ddp.flat.views(run.ddp.flat.values), run.communicator)
        self._replicas_checked = run.step
        if drift is not None:
            message = (
                f"after step {run.step}: {drift}; the memory of a host may be faulty: check the hosts, and resume from "
                "the last checkpoint"
            )
            raise agreed(TrainingError(message))
