"""The command line of `lucid`: runs a command, and turns errors into messages and exit codes.

A user's mistake is one sentence on standard error, from one rank only, and exit code 2.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from lucid import output
from lucid.cli.commands import Commands
from lucid.distributed.communicators.announcement import is_first_rank
from lucid.errors import ExitCode, LucidError, fault_of_the_machine
from lucid.version import __version__

# These commands make files. The options make them print instead.
_REPORTING = (["prepare"], ["extend"], ["train"], ["submit"], ["embed"], ["export"], ["average"], ["plot"], ["report"])
_PRINTING = frozenset(("-h", "--help", "--print-config"))

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
    output.set_up()
    code = _run(arguments or ["--help"])
    if code == ExitCode.FINISHED and _is_asked_for_its_output(arguments) and (fault := output.lost()):
        if fault.errno == errno.EPIPE:  # such as head, which has read enough
            return ExitCode.FINISHED
        return _refuse(f"the output could not be written: {fault.strerror}", ExitCode.FAILED)
    return code


def _run(arguments: Sequence[str]) -> int:
    try:
        code = app(args=[*map(_with_home, arguments)], standalone_mode=False, prog_name="lucid")
    except LucidError as error:
        return error.exit_code if error.reported else _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)  # of the command whose arguments are wrong
        command = context.command_path if context else "lucid"
        return _refuse(f"{error.format_message().removesuffix('.')} (see {command} --help)", ExitCode.REFUSED)
    except (OSError, MemoryError, UnicodeEncodeError) as error:
        if fault := fault_of_the_machine(error):
            return _refuse(fault, ExitCode.FAILED)
        if not isinstance(error, OSError) or error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}", ExitCode.REFUSED)
    return code if isinstance(code, int) else ExitCode.FINISHED


def _is_asked_for_its_output(arguments: Sequence[str]) -> bool:
    """Return whether what the command prints is its result, and not only a report on it."""
    return arguments[:1] not in _REPORTING or not _PRINTING.isdisjoint(arguments)


def _with_home(word: str) -> str:
    """Expand `~` in `--option=~/path`, which a shell leaves."""
    option, equals, value = word.partition("=")
    return f"{option}={os.path.expanduser(value)}" if equals and word.startswith("--") else word


def _refuse(message: str, code: int) -> int:
    if is_first_rank():
        print(f"lucid: {message}", file=sys.stderr, flush=True)
    return code
