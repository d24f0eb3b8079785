"""The command line of `lucid`: runs a command, and turns errors into messages and exit codes.

A user's mistake is one sentence on standard error, from one rank only, and exit code 2.
"""

import io
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated

import typer

from lucid.cli.commands import Commands
from lucid.distributed.communicators.announcement import is_first_rank
from lucid.errors import ExitCode, LucidError, fault_of_the_machine
from lucid.version import __version__

app = typer.Typer(
    name="lucid",
    cls=Commands,
    help="Pretrain BERT by data parallelism, over MPI.",
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"lucid {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Read the options before the command."""


def run(arguments: Sequence[str]) -> int:
    """Run the command line `arguments`, and return the exit code."""
    _write_whole_lines()
    try:
        code = app(args=arguments or ["--help"], standalone_mode=False, prog_name="lucid")
    except LucidError as error:
        return error.exit_code if error.reported else _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        return _refuse(f"{error.format_message()} (see lucid --help)", ExitCode.REFUSED)
    except (OSError, MemoryError) as error:
        if fault := fault_of_the_machine(error):
            if isinstance(error, OSError) and error.filename is None:
                with suppress(OSError):
                    sys.stdout.close()  # otherwise Python would try to write its buffer once more
            return _refuse(fault, ExitCode.FAILED)
        if not isinstance(error, OSError) or error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}", ExitCode.REFUSED)
    except (typer.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.FINISHED


def _write_whole_lines() -> None:
    """Write each line at once and in one piece, because other ranks may write to the same log."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def _refuse(message: str, code: int) -> int:
    if is_first_rank():
        print(f"lucid: {message}", file=sys.stderr, flush=True)
    return code
