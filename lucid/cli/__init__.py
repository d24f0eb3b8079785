"""The command line: `lucid COMMAND ...`. One file a command; what they share is here.

A user's mistake is one sentence on standard error, from one rank only, and exit code 2; see `docs/reliability.md`.
"""

import sys
from collections.abc import Sequence

import click
import typer

from lucid.cli.evaluate import evaluate
from lucid.cli.export import export
from lucid.cli.plot import plot
from lucid.cli.predict import predict
from lucid.cli.prepare import prepare
from lucid.cli.train import train
from lucid.distributed import is_first_rank
from lucid.errors import LucidError

INTERRUPTED = 130

app = typer.Typer(
    name="lucid",
    help="Pretrain BERT by data parallelism, over MPI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (prepare, train, evaluate, predict, export, plot):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    sys.exit(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(args=arguments, standalone_mode=False, prog_name="lucid")
        return code if isinstance(code, int) else 0
    except LucidError as error:
        if is_first_rank():
            print(f"lucid: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 0
    except click.ClickException as error:
        if is_first_rank():
            error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
