"""`lucid bench ...`: measures how fast this machine trains."""

import typer

from lucid.cli.bench.step import step

bench = typer.Typer(help="Measure how fast this machine trains.", no_args_is_help=True, add_completion=False)
bench.command()(step)


@bench.callback()
def _group() -> None:
    """Make `step` a command of a group: typer would drop the name of a single command."""
