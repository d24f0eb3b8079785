"""`lucid train`: trains a run, from the beginning or from where it was."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.plots import plot_run
from lucid.cli.run_settings import ConfigFile, Overrides
from lucid.distributed import StopRequest, is_first_rank, run_on_first_rank, session
from lucid.errors import ExitCode
from lucid.training import run
from lucid.training.config import from_dict, load


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings, defaults included, and end.")
    ] = False,
) -> int:
    """Train a run, or go on with it from its newest checkpoint. Several ranks: see lucid launch.

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
        text = run_on_first_rank(group, lambda: json.dumps(load(config, overrides or ()).as_dict()))
        settings = from_dict(json.loads(text))
        code = run(settings, group, stop)
        if code == ExitCode.FINISHED and group.rank == 0:
            print(f"loss plot   {_plot(settings.run_folder)}")
        return code


def _plot(folder: Path) -> str:
    """Draw the run and return where. A plot that cannot be drawn does not fail a finished run."""
    try:
        plot_run(folder, folder / "loss.png")
    except Exception as error:  # matplotlib reads the user's settings, and raises all kinds of errors on wrong ones
        return f"none: {error}"
    return str(folder / "loss.png")
