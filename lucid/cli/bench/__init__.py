"""`lucid bench ...`: how fast this machine trains. One file a command, and `table.py`, which prints."""

import typer

from lucid.cli.bench.step import step

bench = typer.Typer(help="Measure how fast this machine trains.", no_args_is_help=True, add_completion=False)
bench.command()(step)


@bench.callback()
def _group() -> None:
    """Keep the name of the command, which typer drops where there is but one."""
