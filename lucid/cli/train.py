"""`lucid train`: trains a run, from the beginning or from where it was."""

import json
from typing import Annotated

import typer

from lucid.cli.run_settings import ConfigFile, Overrides
from lucid.distributed import StopRequest, is_first_rank, session, text_of_first
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
        return run(from_dict(json.loads(text)), group, stop)
