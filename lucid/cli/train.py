"""`lucid train`: trains a run, or resumes it."""

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
        bool, typer.Option("--print-config", help="Print all settings and their meaning, defaults included, and exit.")
    ] = False,
) -> int:
    """Train a run, or resume it from its newest checkpoint. For several ranks see lucid launch.

    Exit code 0: the run has finished. 75: SIGTERM or SIGUSR1 stopped it after saving; start it again to resume. 2: the
    settings or the input are wrong. 86: a rank was missing for longer than train.watchdog_seconds.

    Examples:

        lucid train my.yaml

        lucid train my.yaml train.steps=200 run_folder=runs/short

        lucid train my.yaml --print-config
    """
    if print_config:
        settings = load(config, overrides or ())
        if is_first_rank():
            print(settings.as_yaml(), end="")
        return ExitCode.FINISHED
    with session() as group, StopRequest() as stop:
        # All ranks use the first rank's settings, even if the file differs between hosts.
        text = run_on_first_rank(group, lambda: json.dumps(load(config, overrides or ()).as_dict()))
        settings = from_dict(json.loads(text))
        code = run(settings, group, stop)
        if code == ExitCode.FINISHED and group.rank == 0:
            print(f"loss plot   {_plot(settings.run_folder)}")
        return code


def _plot(folder: Path) -> str:
    """Plot the run and return the file. A plot that cannot be drawn does not fail a finished run."""
    try:
        plot_run(folder, folder / "loss.png")
    except Exception as error:  # matplotlib raises various errors if the user's settings for it are wrong
        return f"none: {error}"
    return str(folder / "loss.png")
