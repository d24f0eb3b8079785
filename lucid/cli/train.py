"""`lucid train`: trains a run, from the beginning or from where it was."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.placement import print_placement
from lucid.cli.run_settings import ConfigFile, Overrides
from lucid.distributed import StopRequest, is_first_rank, places, session, text_of_first, watched
from lucid.distributed.exact import buffers_needed
from lucid.errors import ExitCode
from lucid.kernels import threads
from lucid.training.config import from_dict, load
from lucid.training.metrics import METRICS_FILE
from lucid.training.numerics import limit_threads
from lucid.training.plots import plot_run
from lucid.training.setup import Run, communicator_of, open_run
from lucid.training.trainer import Trainer


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings, defaults included, and end.")
    ] = False,
) -> int:
    """Train a run, or go on with it from its newest checkpoint. Several ranks: see launch/mpirun.sh.

    Exit code 0: finished. 75: stopped by SIGTERM or SIGUSR1 and saved; start it again to go on. 2: a mistake in the
    settings or the input. 86: ranks waited too long for one that did not come (train.watchdog_seconds).

    Examples:

        lucid train configs/small_cpu.yaml

        lucid train configs/small_cpu.yaml train.steps=200 run_folder=runs/short

        lucid train configs/small_cpu.yaml --print-config
    """
    if print_config:
        settings = load(config, overrides or ())
        if is_first_rank():
            print(settings.as_yaml(), end="")
        return ExitCode.FINISHED
    with session() as group, StopRequest() as stop:
        # The first rank's settings are those of all: a file that differs between hosts cannot split the run.
        text = text_of_first(group, lambda: json.dumps(load(config, overrides or ()).as_dict()))
        settings = from_dict(json.loads(text))
        limit_threads(settings.threads_per_rank)
        with watched(group, settings.train.watchdog_seconds):
            run = open_run(settings, communicator_of(settings, group))
            ranks = places(group, threads.count(), run.model.device)
            if run.is_first:
                print_placement(ranks)
                _print_start(run)
            finished = Trainer(run).train(stop)
            if run.is_first:
                with group.whereabouts.phase("drawing the loss plot"):
                    _print_end(run, finished)
    return ExitCode.FINISHED if finished else ExitCode.STOPPED


def _print_start(run: Run) -> None:
    config, size = run.config, run.communicator.size
    parameters = sum(parameter.size for parameter in run.ddp.flat.parameters)
    share = config.train.global_batch // size
    time = f" or {config.train.max_hours:g} hours" if config.train.max_hours is not None else ""
    print(
        f"{parameters:,} parameters; {config.train.steps:,} steps{time} of {config.train.global_batch} "
        f"{config.samples} of {config.data.sequence_length} tokens, on {size} rank{'s' * (size > 1)} with {share} each",
        *_exact_reduction(run),
        *run.messages,
        sep="\n",
        flush=True,
    )


def _exact_reduction(run: Run) -> list[str]:
    """Return what the exact reduction takes, if it is in use."""
    micro_batches = run.config.exact_micro_batches(run.communicator.size)
    if micro_batches is None:
        return []
    buffers, size = buffers_needed(micro_batches), run.ddp.flat.gradients.nbytes
    return [
        f"exact reduction: {micro_batches} micro-batch{'es' * (micro_batches > 1)} a rank in up to {buffers} gradient "
        f"buffer{'s' * (buffers > 1)} of {size / 1e6:,.0f} MB, {run.config.threads_per_rank} thread"
        f"{'s' * (run.config.threads_per_rank != 1)} a rank"
    ]


def _print_end(run: Run, finished: bool) -> None:
    folder = run.config.run_folder
    steps = run.config.train.steps
    early = ", as train.max_hours has passed" if finished and run.step < steps else ""
    print(f"{'finished' if finished else 'stopped'} at step {run.step:,} of {steps:,}{early}")
    print(f"checkpoint  {run.checkpoint or 'none yet'}")
    print(f"metrics     {folder / METRICS_FILE}")
    if finished:
        print(f"loss plot   {_plot(folder)}")


def _plot(folder: Path) -> str:
    """Draw the run and return where; a plot that cannot be drawn does not fail a finished run."""
    try:
        plot_run(folder, folder / "loss.png")
    except Exception as error:  # matplotlib's settings are the user's, and it raises what it likes on wrong ones
        return f"none: {error}"
    return str(folder / "loss.png")
