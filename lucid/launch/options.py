"""The options of `lucid launch`: what a user asks for."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid.errors import LaunchError
from lucid.files import open_file, reason_of

USAGE = """\
Usage: lucid launch [OPTION ...] CONFIG [key=value ...]
       lucid launch [OPTION ...] SCRIPT.py [ARGUMENT ...]
       lucid launch [OPTION ...] --doctor [--folder DIR]

Start the ranks of a run with the MPI of this Python environment, on this
machine or on several hosts. Each rank runs `lucid train CONFIG`, where
key=value replaces a setting. With --doctor each rank runs `lucid doctor`
instead, which checks the hosts as the run would use them. Options may come
before or after CONFIG, as `--option value` or `--option=value`; of two values
the last one counts. After `--` there are no more options.

In place of CONFIG, each rank runs a Python script of your own, which finds the
others by lucid.distributed.connect(). All words after SCRIPT.py are arguments
of the script. It gets its cores, threads and GPU as a run does, and an empty
standard input; a failure of one rank ends all. SIGTERM, SIGUSR1 and SIGHUP
reach the script as SIGTERM, Ctrl-C ends it at once, and nothing starts it
again.

  -n N           number of ranks in all (default: on every host one for each
                 physical core, or with --gpus for each GPU)
  --hostfile F   hosts, one name a line. They share all files, have as many
                 cores and GPUs as this machine, and accept ssh (or the program
                 that $HYDRA_LAUNCHER_EXEC names) without a password. If the
                 file names a host several times, as $PBS_NODEFILE does, there
                 is a rank for each line
  --gpus         give each rank of a host its own GPU, and cores near it
  --dry-run      print the command and the threads per rank, and run nothing
  --restarts N   after a failure, or after the ranks have stopped and saved
                 (exit code 75), start again from the newest checkpoint, at most
                 N times. A mistake in the settings (exit code 2), Ctrl-C, or a
                 failure without a newer checkpoint than the failure before ends
                 the run
  --backoff S    seconds before the first restart (default: 2). They double with
                 each restart, up to 60
  --min-ranks K  with --hostfile: leave out hosts that do not answer before a
                 restart, as long as the settings allow K ranks or more on the
                 others (default: as many as at the start). The loss curve stays
                 the same

The exit code is the run's. After SIGTERM, SIGUSR1, SIGHUP (the terminal has
closed) and Ctrl-C the ranks save and end: with 130 after Ctrl-C, or else with
75. A second Ctrl-C ends them at once. All of this ends a run with --restarts,
too: a scheduler that sends a signal before its time limit starts the run again
itself.

Each rank has as many threads as there are cores for each rank of its host,
unless OMP_NUM_THREADS is set. If the ranks use all cores, each is bound to its
own, one NUMA domain after the other. mpiexec is the one of the Python
environment, or the one in the PATH if it belongs to the MPI that mpi4py loads.

Examples:

    lucid launch -n 2 my.yaml

    lucid launch -n 4 my.yaml train.global_batch=64 run_folder=runs/larger

    lucid launch -n 16 --hostfile hosts --restarts 20 --min-ranks 8 my.yaml

    lucid launch --gpus my.yaml train.device=cuda

    lucid launch -n 16 --hostfile hosts --doctor

    lucid launch -n 2 examples/train.py data/python-docs runs/by_hand
"""


# The command that started all ranks of a run, for a rank that says how to resume it.
COMMAND_VARIABLE = "LUCID_COMMAND"


def command_line(arguments: Sequence[str]) -> str:
    """Return a line for a shell that does what this process was started to do; `arguments` are its `sys.argv`."""
    program, *rest = arguments
    start = ["lucid"] if os.path.basename(program) == "lucid" else [sys.executable, "-m", "lucid"]
    return shlex.join((*start, *rest))


@dataclass(frozen=True)
class Restarts:
    """How often a run is started again, how soon (seconds), and with how many ranks at least (None: with all)."""

    most: int
    backoff: int = 2
    min_ranks: int | None = None


@dataclass(frozen=True)
class Options:
    """What a user asks for. `arguments` are those of `command`.

    This is `lucid train` or `lucid doctor`; or "script", which the first of the arguments is.
    """

    command: str = "train"
    arguments: tuple[str, ...] = ()
    ranks: int | None = None
    hostfile: str = ""
    gpus: bool = False
    dry_run: bool = False
    restarts: Restarts | None = None
    wants_help: bool = False


_WITH_VALUE = ("--hostfile", "--restarts", "--backoff", "--min-ranks")
_OPTIONS = ("-n", "--gpus", "--dry-run", "--doctor", "--help", *_WITH_VALUE)


def parse(words: Sequence[str]) -> Options:
    """Return what the words after `lucid launch` ask for. Raises `LaunchError`; the files have to be readable."""
    rest = list(words)
    found: dict[str, Any] = {}
    restarts: dict[str, int] = {}
    arguments: list[str] = []
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] in _WITH_VALUE:
            word, *value = word.split("=", maxsplit=1)
            rest = [*value, *rest]
        match word:
            case "-h" | "--help":
                return Options(wants_help=True)
            case "--gpus" | "--dry-run":
                found[word[2:].replace("-", "_")] = True
            case "-n":
                found["ranks"] = positive_number(_value(rest), "-n takes the number of ranks")
            case "--hostfile":
                found["hostfile"] = _readable(_value(rest), "the hostfile")
            case "--restarts" | "--backoff" | "--min-ranks":
                restarts[word] = _whole_number(_value(rest), word)
            case "--doctor":
                found["command"] = "doctor"
            case "--":
                arguments, rest = [*arguments, *rest], []
            case _:
                arguments.append(word)
                if _is_script(arguments):
                    arguments, rest = [*arguments, *rest], []
    if _is_script(arguments) and "command" not in found:
        found["command"] = "script"
    options = Options(**found, arguments=tuple(arguments), restarts=_restarts(restarts))
    _check(options)
    return options


def _is_script(arguments: Sequence[str]) -> bool:
    return len(arguments) > 0 and arguments[0].endswith(".py")


def positive_number(text: str, sentence: str) -> int:
    """Return the number that `text` writes; `LaunchError` begins with `sentence` if it does not."""
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise LaunchError(f"{sentence}, got '{text}'")
    return int(text)


def _restarts(given: dict[str, int]) -> Restarts | None:
    if given and "--restarts" not in given:
        raise LaunchError(f"{next(iter(given))} goes with --restarts")
    if not given:
        return None
    return Restarts(given["--restarts"], given.get("--backoff", 2), given.get("--min-ranks"))


def _check(options: Options) -> None:
    if options.command == "train":
        for argument in options.arguments:
            if argument.startswith("-"):
                raise LaunchError(f"option {argument} is not known{_meant(argument)}, see lucid launch --help")
        if not options.arguments:
            raise LaunchError("CONFIG is missing, see lucid launch --help")
        _readable(options.arguments[0], "the configuration")
    if options.command == "script":
        _readable(options.arguments[0], "the script")
        if options.restarts:
            raise LaunchError(
                "--restarts is for a run with a CONFIG, whose checkpoints say whether to start again: leave it out"
            )
    if options.restarts and options.command == "doctor":
        raise LaunchError("--doctor is not started again: leave out --restarts")
    if options.restarts and options.restarts.min_ranks is not None and not options.hostfile:
        raise LaunchError("--min-ranks goes with --hostfile: only a host that is lost makes the ranks fewer")
    if ":" in options.arguments:
        raise LaunchError("the argument ':' is no setting: to mpiexec it begins another command; drop it")


def _meant(option: str) -> str:
    import difflib  # starts need none of it

    (nearest,) = difflib.get_close_matches(option.partition("=")[0], _OPTIONS, n=1) or ("",)
    return f" (did you mean {nearest}?)" if nearest not in ("", option) else ""


def _value(rest: list[str]) -> str:
    return rest.pop(0) if rest else ""


def _whole_number(text: str, option: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise LaunchError(f"{option} takes a whole number, got '{text}'")
    return int(text)


def _readable(path: str, name: str) -> str:
    try:
        open_file(Path(path)).close()
    except OSError as error:
        raise LaunchError(f"{name} '{path}' cannot be read: {reason_of(error)}") from error
    return path
