"""A whole run: what `lucid train` does on each rank once the ranks are connected."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from lucid import kernels, random
from lucid.distributed import ProcessGroup, Stop, locate_ranks, print_locations, watched
from lucid.distributed.parallel.exact import buffers_needed
from lucid.errors import CheckpointError, ExitCode
from lucid.kernels import threads
from lucid.models.bert.memory import parameter_count
from lucid.training.attempts import failure_noted, note_end
from lucid.training.config import RunConfig
from lucid.training.end import expected_end
from lucid.training.explanations.explainer import findings_in
from lucid.training.explanations.facts import facts_of
from lucid.training.formatting import count
from lucid.training.log.metrics import METRICS_FILE
from lucid.training.numerical_environment import limit_threads
from lucid.training.run_on_rank import Run
from lucid.training.setup import communicator_of, open_run
from lucid.training.trainer import Trainer


def run(settings: RunConfig, group: ProcessGroup, stop: Stop) -> ExitCode:
    """Train the run of `settings` from its newest checkpoint, if any, to its end. All ranks of `group` call this.

    The first rank prints where the ranks run, the losses, and how the run ended. Returns `ExitCode.FINISHED`, or
    `ExitCode.STOPPED` if `stop.requested` became true on any rank: all ranks have then stopped after the same step, and
    the run is saved. Raises a `LucidError`, with `agreed` set if all ranks raise it. If a rank is missing in a
    collective for too long, the watchdog ends the process with `ExitCode.HUNG`.

    Threads, kernels and seed of the process follow `settings` during the run, and are restored afterwards.
    """
    with process_as_it_was(), watched(group, settings.train.watchdog_seconds, settings.run_folder):
        limit_threads(settings.threads_per_rank)
        opened = open_run(settings, communicator_of(settings, group))
        opened.locations = locate_ranks(group, threads.count(), opened.model.device)
        trainer = Trainer(opened)
        if opened.is_first:
            print_locations(opened.locations)
            _print_start(opened)
        with failure_noted(opened):
            finished = trainer.train(stop)
        if opened.is_first:
            note_end(opened, "finished" if finished else "stopped")
            _print_end(opened, finished, trainer.reports.findings_after(opened.step))
    return ExitCode.FINISHED if finished else ExitCode.STOPPED


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restore the threads, kernels and random numbers of this process after the block."""
    # The trainer looks for numbers that are not finite, and says where they are.
    quiet = np.errstate(over="ignore", invalid="ignore")
    with threadpool_limits(), kernels.choices_kept(), random.using(random.state()), quiet:
        yield


def _print_start(run: Run) -> None:
    config, size = run.config, run.communicator.size
    most_samples = config.shared_by(size).most_samples
    at_most = "" if most_samples * size == config.train.global_batch else "at most "
    time = f" or {config.train.max_hours:g} hours" if config.train.max_hours is not None else ""
    print(
        f"{parameter_count(config.model):,} parameters; {config.train.steps:,} steps{time} of "
        f"{config.train.global_batch} {config.samples} of {config.data.sequence_length} tokens, on "
        f"{count(size, 'rank')} with {at_most}{most_samples} each",
        *_exact_reduction(run),
        *run.messages,
        sep="\n",
        flush=True,
    )


def _exact_reduction(run: Run) -> list[str]:
    """Return a line on the cost of the exact reduction, if the run uses it."""
    micro_batches = run.config.shared_by(run.communicator.size).exact_micro_batches
    if micro_batches is None:
        return []
    buffers, size = count(buffers_needed(micro_batches), "gradient buffer"), run.ddp.flat.gradients.nbytes
    return [
        f"exact reduction: {micro_batches} micro-batch{'es' * (micro_batches > 1)} a rank in up to {buffers} of "
        f"{size / 1e6:,.0f} MB, {count(run.config.threads_per_rank or 1, 'thread')} a rank"
    ]


def _print_end(run: Run, finished: bool, just_said: set[str]) -> None:
    """Say how the run ended, and what is wrong with its curve, but for the findings whose names are `just_said`."""
    folder = run.config.run_folder
    steps = run.config.train.steps
    early = f", {_why_early(run)}" if finished and run.step < steps else ""
    print(f"{'finished' if finished else 'stopped'} at step {run.step:,} of {steps:,}{early}")
    print(f"checkpoint  {run.checkpoint or 'none yet'}")
    if run.best is not None and run.config.train.keeps_best:
        print(f"best        {_best_checkpoint(run)} (held-out loss {run.best.loss:.4f})")
    print(f"metrics     {folder / METRICS_FILE}")
    # A run that ends early has no second half to wait for.
    end = expected_end(run.config, run.step, run.training_seconds, run.best)
    facts = replace(facts_of(run.config, run.corpora.train, run.counts), steps=end)
    for finding in findings_in(folder, facts):
        if finding.is_alarm and finding.name not in just_said:
            print(f"warning     {finding}")


def _why_early(run: Run) -> str:
    if not run.has_stopped_early or run.best is None:
        return "as train.max_hours has passed"
    return (
        f"as the last {count(run.best.since, 'evaluation')} brought no smaller held-out loss than step "
        f"{run.best.step:,}: raise train.patience to go on"
    )


def _best_checkpoint(run: Run) -> str:
    try:
        return str(run.store.best())
    except CheckpointError as error:
        return str(error)
