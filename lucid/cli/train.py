"""`lucid train`: trains a run, or resumes it."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.plots import plot_runs
from lucid.cli.run_settings import ConfigFile, Overrides
from lucid.distributed import StopRequest, announced, is_first_rank, run_on_first_rank, session
from lucid.errors import ExitCode
from lucid.launch.options import COMMAND_VARIABLE, command_line
from lucid.training import run
from lucid.training.config import from_dict, load
from lucid.training.config.described import as_yaml


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print all settings and their meaning, defaults included, and exit.")
    ] = False,
) -> int:
    """Train a run, or resume it from its newest checkpoint. For several ranks see lucid launch.

    Exit code 0: the run has finished. 75: SIGTERM, SIGUSR1 or SIGHUP stopped it after saving; start it again to resume.
    130: Ctrl-C stopped it after saving. 2: the settings or the input are wrong. 86: a rank was missing for longer than
    train.watchdog_seconds.

    In paths of settings, ~ is your home and $NAME a variable of the environment; the expanded path is recorded and
    shown.

    Examples:

        lucid train my.yaml

        lucid train my.yaml train.steps=200 run_folder=runs/short

        lucid train my.yaml --print-config
    """
    if print_config:
        settings = load(config, overrides or ())
        if is_first_rank():
            print(as_yaml(settings), end="")
        return ExitCode.FINISHED
    with StopRequest() as stop, session() as group:
        stop.listen_again()
        # All ranks use the first rank's settings, even if the file differs between hosts.
        text = run_on_first_rank(group, lambda: json.dumps(load(config, overrides or ()).as_dict()))
        settings = from_dict(json.loads(text))
        code = run(settings, group, stop)
        if code == ExitCode.FINISHED and group.rank == 0:
            print(f"loss plot   {_plot(settings.run_folder)}")
        if code == ExitCode.STOPPED:
            if group.rank == 0 and (command := _command()):
                print(f"resume      {command}")
            if group.all_reduce_scalar(stop.interrupted) > 0:
                code = ExitCode.INTERRUPTED
        return code


def _command() -> str:
    """Return how to start this run again, or "" if that is up to who started it."""
    started_by = os.environ.get(COMMAND_VARIABLE)
    if started_by is not None:
        return started_by
    return command_line(sys.argv) if announced() is None else "run the same command again"


def _plot(folder: Path) -> str:
    """Plot the run and return the file. A plot that cannot be drawn does not fail a finished run."""
    try:
        plot_runs([folder], folder / "loss.png")
    except Exception as error:  # matplotlib raises various errors if the user's settings for it are wrong
        return f"none: {error}"
    return str(folder / "loss.png")
