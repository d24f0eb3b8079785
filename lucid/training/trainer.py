"""The training loop, short enough to read in one sitting.

One step: take the global counts and the stop flag (summed over ranks while the step before ran), run this rank's share
in micro-batches, the gradients being summed over ranks during the last one's backward, clip by the global norm, update.

On a GPU the host goes on to the next step at once, and looks at what came out of a step (losses, the norm, whether it
was skipped) when it has given the GPU the next one to do, or when somebody wants to know.
"""

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from types import TracebackType

import numpy as np

from lucid.backend import CPU
from lucid.data import Loader
from lucid.distributed import Communicator, Stop, all_or_none, find_drift, is_agreed, wait_for_device
from lucid.errors import TrainingError
from lucid.gpu_async import HostCopy
from lucid.models.bert.flops import forward_flops
from lucid.optim import WarmupPolynomialDecay, clip_scale, global_norm, not_finite
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.checkpoints.saver import Saver
from lucid.training.efficiency import product_limit
from lucid.training.evaluation import Evaluation, evaluate
from lucid.training.graphs import GraphedMicroBatches
from lucid.training.metrics import MetricsLog, ProgressLine, Window
from lucid.training.micro_batches import LocalBatch, MicroBatches
from lucid.training.requirements import memory
from lucid.training.setup import Run


class Control:
    """The one small message of a step, sent a step ahead: what counts in the global batch, the time, whether to stop.

    The time is the first rank's, so that all go by one clock; the others add nothing to it.
    """

    def __init__(self, communicator: Communicator, share: LocalBatch, seconds: float, stop: bool) -> None:
        clock = seconds if communicator.rank == 0 else 0.0
        self._values = np.array([share.masked_tokens, share.pairs, clock, stop], np.float64)
        self._work = communicator.all_reduce(self._values)

    def wait(self) -> tuple[float, float, float, bool]:
        """Return (masked tokens, sentence pairs, seconds in training so far, whether any rank wants to stop)."""
        self._work.wait()
        masked_tokens, pairs, seconds, stop = self._values.tolist()
        return masked_tokens, pairs, seconds, stop > 0


@dataclass(frozen=True)
class Outcome:
    """What came out of a step: `figures` are those of `MicroBatches.gradients`, then the gradient's norm.

    `has_labels` says whether the global batch had labels; without any the gradient is 0.
    """

    step: int
    learning_rate: float
    has_labels: bool
    masked_tokens: int
    pairs: int
    figures: HostCopy


class Trainer:
    """Trains one run, on this rank."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.settings = run.config.train
        self.evaluation: Evaluation | None = None
        optimizer = run.config.optimizer
        self._most_seconds = math.inf if self.settings.max_hours is None else 3600 * self.settings.max_hours
        self._schedule = WarmupPolynomialDecay(
            optimizer.learning_rate,
            optimizer.warmup_steps,
            self.settings.steps,
            optimizer.decay_power,
            optimizer.final_learning_rate,
            self._most_seconds,
        )
        self._window = Window(run.communicator, run.window)
        self._step_began = 0.0
        if run.model.device != CPU:
            _ = self.product_limit  # while the GPU has memory for it
        self._micro_batches = _micro_batches(run)
        # Of the steps whose outcome nobody has looked at.
        self._outcomes: deque[Outcome] = deque()
        self._steps_ahead = 0 if run.model.device == CPU else 1
        # Of the first rank only: it alone writes and speaks.
        self._log: MetricsLog | None = None
        self._progress: ProgressLine | None = None
        self._saver: Saver | None = None
        self._replicas_checked = run.step
        self._evaluated = -1
        self._figures: dict[str, float] = {}

    @cached_property
    def product_limit(self) -> float:
        """What MFU is a share of, as of `efficiency.product_limit`: measured at the first use. All ranks call this.

        The time that this takes is none of the step's in which it falls.
        """
        began = time.perf_counter()
        with self._window.paused():
            limit = product_limit(self.run)
        self._step_began += time.perf_counter() - began
        return limit

    def train(self, stop: Stop) -> bool:
        """Train until the last step, or the end of `train.max_hours`, or until a stop is asked for on any rank.

        Return whether the end was reached. Either way the last step taken is in a checkpoint afterwards.
        """
        all_or_none(self.run.communicator, self._begin)
        with ExitStack() as stack:
            if self._progress and self._log:
                stack.enter_context(self._progress)
                stack.callback(self._log.close)
                stack.push(self._leave_saver)
            finished = self.loop(stack.enter_context(self.batches(self.settings.steps)), stop)
            if finished and self._window.steps:
                self._report()
            self._save_last()
            if finished and self._evaluated != self.run.step:
                self._evaluate()
        return finished

    def _begin(self) -> None:
        """Open what the first rank writes. From now on nothing is refused, so the run may claim its attempt."""
        run, settings = self.run, self.settings
        if run.is_first:
            ended = self._schedule.progress(run.step, run.training_seconds) >= settings.steps
            self._log = MetricsLog(run.config.run_folder, run.step, ended, settings.tensorboard)
            self._progress = ProgressLine(settings.steps, run.step)
            attempt = run.store.claim(settings.keep_checkpoints, run.checkpoint)
            files = run.corpora.tokenizer_files
            self._saver = Saver(attempt, run.model, run.optimizer, files, run.step, self._progress.say)

    def batches(self, stop: int) -> Loader[LocalBatch]:
        """Return this rank's shares of the global batches from here to before step `stop`."""
        run, data = self.run, self.run.config.data
        make_batch = partial(self._share, run.step, run.samples_consumed)
        return Loader(make_batch, run.step, stop, data.workers, data.prefetch)

    def _share(self, first_step: int, first_sample: int, step: int) -> LocalBatch:
        """Return this rank's share of the global batch of `step`. Runs in the loader's threads."""
        communicator, size = self.run.communicator, self.settings.global_batch
        share = size // communicator.size
        first_row = communicator.rank * share
        consumed = first_sample + (step - first_step) * size
        batch = self.run.corpora.train.batch(consumed, range(first_row, first_row + share))
        return LocalBatch.split(batch, self.settings.micro_batch)

    def loop(self, batches: Iterator[LocalBatch], stop: Stop) -> bool:
        """Take steps until the batches or the time end (True), or a stop was asked for (False)."""
        run, settings = self.run, self.settings
        following = next(batches, None)
        control = self._announce(following, stop)
        while following is not None and control is not None:
            self._step_began = time.perf_counter()
            share = following
            masked_tokens, pairs, seconds, stopping = control.wait()
            progress = self._schedule.progress(run.step, seconds)
            if progress >= settings.steps:
                return True
            if stopping:
                return False
            fetching = time.perf_counter()
            following = next(batches, None)
            data_wait = time.perf_counter() - fetching
            flops = forward_flops(run.config.model, share.batch.sequence_lengths, share.masked_tokens)
            self._window.add_step(data_wait, flops.training)
            control = self._announce(following, stop)
            self._step(share, masked_tokens, pairs, progress)
            run.training_seconds += time.perf_counter() - self._step_began
            if self._due(settings.check_replicas_every):
                self._check_replicas()
            # In this order: what is evaluated before a kill is either saved as well, or done again.
            if self._due(settings.evaluate_every) and following:
                self._evaluate()
            if self._due(settings.checkpoint_every) and following:
                self._save()
        return True

    def _announce(self, share: LocalBatch | None, stop: Stop) -> Control | None:
        """Send the message about the batch that follows, if one does."""
        run = self.run
        return Control(run.communicator, share, run.training_seconds, stop.requested) if share else None

    def _due(self, every: int | None) -> bool:
        return every is not None and self.run.step % every == 0

    def _step(self, share: LocalBatch, masked_tokens: float, pairs: float, progress: float) -> None:
        """Take one step, at this progress of the schedule.

        One whose gradient is not finite moves on in the data, but leaves weights and moments.
        """
        run = self.run
        run.communicator.whereabouts.step = run.step
        learning_rate = self._schedule.learning_rate(progress)
        weights = 1 / max(1, masked_tokens), 1 / max(1, pairs)
        figures = self._micro_batches.gradients(share, run.step, *weights)
        figures[-1] = norm = global_norm(run.ddp.partition)
        run.optimizer.step(learning_rate, clip_scale(norm, run.config.optimizer.max_gradient_norm))
        self._outcomes.append(
            Outcome(
                step=run.step,
                learning_rate=learning_rate,
                has_labels=masked_tokens + pairs > 0,
                masked_tokens=share.masked_tokens,
                pairs=share.pairs,
                figures=HostCopy(figures),
            )
        )
        run.step += 1
        run.samples_consumed += self.settings.global_batch
        self._settle(self._steps_ahead)
        if self._progress:
            self._progress.advance(run.step)
        if self._due(self.settings.log_every):
            self._report()

    def _settle(self, ahead: int = 0) -> None:
        """Look at what came out of all steps but the last `ahead`. All ranks have the same norm, so all agree."""
        run = self.run
        while len(self._outcomes) > ahead:
            outcome = self._outcomes.popleft()
            wait_for_device(run.communicator, outcome.figures)
            *sums, norm = outcome.figures.values.tolist()
            if norm == 0 and outcome.has_labels:
                raise _no_gradient(outcome.step)
            self._window.add(sums, outcome.masked_tokens, outcome.pairs)
            run.skipped_in_a_row = 0 if math.isfinite(norm) else run.skipped_in_a_row + 1
            if run.skipped_in_a_row:
                self._skip(outcome.step)
            self._figures = {
                "gradient_norm": norm,
                "learning_rate": outcome.learning_rate,
                "skipped_steps": run.skipped_steps,
            }

    def _check_replicas(self) -> None:
        """Raise `TrainingError` if the ranks do not hold the same weights."""
        self._settle()
        run = self.run
        drift = find_drift(run.ddp.flat.views(run.ddp.flat.values), run.communicator)
        self._replicas_checked = run.step
        if drift is not None:
            error = TrainingError(
                f"after step {run.step}: {drift}; the memory of a host may be faulty: check the hosts, and go on from "
                "the last checkpoint"
            )
            error.agreed = True
            raise error

    def _skip(self, step: int) -> None:
        """Count a step without update. All ranks have the same norm, so all are here."""
        run = self.run
        run.skipped_steps += 1
        if run.skipped_in_a_row > self.settings.max_skipped_steps:
            # On a GPU these are those of the next step already, which may be finite.
            names = not_finite(run.ddp.partition)
            last = f" (last in {', '.join(names[:3])}{' and more' if len(names) > 3 else ''})" if names else ""
            error = TrainingError(
                f"step {step}: the gradient was not finite {run.skipped_in_a_row} times in a row{last}: lower "
                "optimizer.learning_rate, or lengthen the warm-up, and go on from the last checkpoint"
            )
            error.agreed = True
            raise error

    def _report(self) -> None:
        """Log the steps since the last line, and the figures of the last step."""
        self._settle()
        means = self._window.means(self.settings.global_batch)
        means["mfu"] = means["model_flops_per_second"] / self.product_limit
        if self._log and self._progress:
            self._log.write({"step": self.run.step, **means, **self._figures})
            self._progress.report(self.run.step, means, self._most_seconds - self.run.training_seconds)

    def _evaluate(self) -> None:
        run, sampler = self.run, self.run.corpora.held_out
        if sampler is None:
            return
        self._settle()
        self._evaluated = run.step
        with self._window.paused(), run.communicator.whereabouts.phase("evaluating"):
            self.evaluation = evaluate(
                run.model,
                sampler,
                run.communicator,
                samples=self.settings.evaluation_samples,
                batch_size=self.settings.micro_batch or self.settings.global_batch // run.communicator.size,
                token_losses=run.corpora.token_losses,
            )
        if self._log and self._progress:
            self._log.write({"step": run.step, **self.evaluation.as_dict()})
            self._progress.say(self.evaluation.sentence())

    @property
    def _has_share(self) -> bool:
        """Whether the first rank needs this rank's moments for a checkpoint, as its own are not all."""
        return not self.run.ddp.partition.is_whole

    def _save(self) -> None:
        """Begin a checkpoint. The weights of all ranks are equal: the first writes, while training goes on."""
        with self._window.paused():
            state = self._checked_state()
            if self._saver:
                with self._saving():
                    self._saver.begin(state)
            elif self._has_share:
                self.run.optimizer.state_dict()

    def _save_last(self) -> None:
        """Write a checkpoint of the last step taken, unless it has one; a failure is the error of all ranks."""
        communicator = self.run.communicator
        state = self._checked_state()
        unsaved = False
        if self._saver:
            with self._saving():
                unsaved = not self._saver.has_saved(state)
        wanted = communicator.all_reduce_scalar(unsaved) > 0
        moments = self.run.optimizer.state_dict() if wanted and (self._saver or self._has_share) else {}

        def finish() -> None:
            if self._saver and unsaved:
                with self._saving():
                    self._saver.finish(state, moments)

        all_or_none(communicator, finish)
        if self._saver:
            self.run.checkpoint = self._saver.newest

    def _saving(self) -> AbstractContextManager[None]:
        """Note that the other ranks may wait for long within the block: the disk decides."""
        return self.run.communicator.whereabouts.phase("saving a checkpoint")

    def _checked_state(self) -> TrainingState:
        """Return the place in the run, of which the replicas are known to be equal. All ranks call this."""
        self._settle()
        if self.run.step > self._replicas_checked:
            self._check_replicas()
        return self.run.state(self._window.totals())

    def _leave_saver(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the checkpoint under way, unless the other ranks wait for this one, which has failed, to end."""
        in_order = error is None or is_agreed(error)
        if self._saver and (in_order or self.run.communicator.size == 1):
            with self._saving():
                self._saver.wait()


def _no_gradient(step: int) -> TrainingError:
    """Return the error of a step that would have taught nothing. It is every rank's, as all have the same norm."""
    error = TrainingError(
        f"step {step}: the gradient is exactly 0 although the batch has labels, so backward has not done its work; "
        "please report this, and go on from the last checkpoint"
    )
    error.agreed = True
    return error


def _micro_batches(run: Run) -> MicroBatches:
    """Return what runs the micro-batches of `run` on its device."""
    train = run.config.train
    if run.model.device == CPU:
        return MicroBatches(run.ddp, train.seed)
    # The exact reduction has backward write elsewhere each time.
    graphs = train.cuda_graphs and train.reduction == "fast"
    activations = memory(run.config, run.communicator.size).rank["activations"]
    return GraphedMicroBatches(run.ddp, train.seed, run.communicator, graphs, activations)
