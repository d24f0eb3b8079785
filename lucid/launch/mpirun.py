"""Starts the ranks of a run: what `launch/mpirun.sh` does.

The ranks run in the Python that runs this.
`parse` reads the arguments, `look_around` finds out about MPI and this machine, `plan` decides, and touches nothing.
Then this process becomes mpiexec, so that signals reach it.
"""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lucid.errors import ExitCode
from lucid.launch import hostfile
from lucid.launch.limits import available_cores
from lucid.launch.placement import THREAD_VARIABLES, Machine

MOST_SENTENCES = 5
WIDTH_OF_A_TERMINAL = 120

# A step frees and takes the same large arrays again: let glibc keep them, rather than fetch fresh pages each time.
MEMORY_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}

USAGE = """\
Usage: launch/mpirun.sh [-n N] [--hostfile F] [--gpus] [--dry-run]
                        [--restarts N [--backoff SECONDS] [--min-ranks K]] CONFIG [key=value ...]
       launch/mpirun.sh [-n N] [--hostfile F] [--gpus] [--dry-run] --doctor [--folder DIR]

Trains as CONFIG (YAML) says, on N ranks; key=value overrides a setting, as in `lucid train`. With --doctor: says what
these ranks, started in the same way, can do (`lucid doctor`).

  -n N          ranks in all (default: one per physical core that may be used, or with --gpus per GPU, on every host)
  --hostfile F  hosts, one name per line; they see the same files and have as many cores and GPUs as this one. Each has
                to let you in without a password, by ssh or by what $HYDRA_LAUNCHER_EXEC names
  --gpus        give every rank of a host a GPU of its own, and cores near it
  --dry-run     print the command and the threads per rank, and do not run it
  --restarts N  start again from the newest checkpoint, at most N times, after a fault or when the ranks stopped and
                saved (exit code 75); not after a mistake in the settings (2) or Ctrl-C, nor when there is no newer
                checkpoint than after the failure before
  --backoff S   seconds before the first restart (default: 2), twice as many before each further one, at most 60
  --min-ranks K with --hostfile: hosts that do not answer before a restart are left out, as long as the settings allow
                K ranks or more on the rest (default: as many as at the start); the loss curve stays the same

Signals are passed on to the ranks: after SIGTERM and SIGUSR1 they save and end with 75, after Ctrl-C with 130. Either
way that is the end, with --restarts too: who sends them, such as a scheduler before its time limit, starts again.

Threads per rank are cores / ranks on a host, unless OMP_NUM_THREADS is set. Ranks that together take all cores are
bound to their share of them, one NUMA domain after the other. Python is $PYTHON, that of the active environment or of
.venv, or python3; mpiexec is the one beside it, or the one in the PATH if mpi4py loads its MPI.

Example: launch/mpirun.sh -n 2 configs/small_cpu.yaml train.global_batch=64
"""


class RefusedError(Exception):
    """Nothing can be started; the message is for the user, after the usage if that helps."""

    def __init__(self, message: str, with_usage: bool = False) -> None:
        super().__init__(message)
        self.with_usage = with_usage


@dataclass(frozen=True)
class Options:
    """What the user asked for. `arguments` are those of `lucid train` or `lucid doctor`, `command`.

    `supervision` are the options of `supervise`, as they were given.
    """

    command: str = "train"
    arguments: tuple[str, ...] = ()
    ranks: int | None = None
    hostfile: str = ""
    gpus: bool = False
    dry_run: bool = False
    supervision: tuple[str, ...] = ()
    wants_help: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What there is to start ranks with: programs, `mpi`'s name, the cores and GPUs of a host, and the hosts.

    Without a hostfile there are no names of `hosts`: there is one host, this machine.
    """

    python: str
    mpiexec: str
    mpi: str
    cores: int
    gpus: int = 0
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Launch:
    """What is run: `command` with the environment variables in `variables` more, and `threads` per rank."""

    command: tuple[str, ...]
    variables: dict[str, str]
    threads: int
    warning: str = ""


def parse(arguments: Sequence[str]) -> Options:
    """Return what the arguments of `mpirun.sh` ask for; or raise `RefusedError`. Files have to be readable."""
    rest = list(arguments)
    found: dict[str, Any] = {}
    supervision: list[str] = []
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in ("-h", "--help"):
            return Options(wants_help=True)
        if option in ("--gpus", "--dry-run"):
            found[option.strip("-").replace("-", "_")] = True
        elif option == "--doctor":
            found["command"] = "doctor"
            break
        elif option in ("-n", "--hostfile", "--restarts", "--backoff", "--min-ranks"):
            value = rest.pop(0) if rest else ""
            if option == "-n":
                found["ranks"] = _whole_number(value, "-n takes the number of ranks")
            elif option == "--hostfile":
                found["hostfile"] = _readable(value, "the hostfile")
            elif re.fullmatch("[0-9]+", value):
                supervision += option, value
            else:
                raise RefusedError(f"{option} takes a whole number, got '{value}'")
        else:
            raise RefusedError(f"option {option} is not known, see --help")
    options = Options(**found, arguments=tuple(rest), supervision=tuple(supervision))
    _check(options)
    return options


def _check(options: Options) -> None:
    if options.command == "train":
        if not options.arguments:
            raise RefusedError("CONFIG is missing", with_usage=True)
        _readable(options.arguments[0], "the configuration")
    if options.supervision and "--restarts" not in options.supervision:
        raise RefusedError(f"{options.supervision[0]} goes with --restarts")
    if options.supervision and options.command == "doctor":
        raise RefusedError("--doctor is not started again: leave out --restarts")
    if ":" in options.arguments:
        raise RefusedError("the argument ':' is no setting: to mpiexec it begins another command; drop it")


def _whole_number(text: str, sentence: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,6}", text):
        raise RefusedError(f"{sentence}, got '{text}'")
    return int(text)


def _readable(path: str, what: str) -> str:
    if not os.access(path, os.R_OK) or os.path.isdir(path):
        raise RefusedError(f"{what} '{path}' cannot be read")
    return path


def number_of_ranks(options: Options, there: Surroundings) -> int:
    """Return how many ranks there are to be in all."""
    if options.ranks is not None:
        return options.ranks
    if options.gpus and not there.gpus:
        raise RefusedError("--gpus: this machine has no GPU for a rank: say how many ranks there are to be (-n)")
    return (there.gpus if options.gpus else there.cores) * max(1, len(there.hosts))


def plan(
    options: Options, there: Surroundings, environment: Mapping[str, str], width: str = "", is_root: bool = False
) -> Launch:
    """Return what starts the ranks; `RefusedError` where `environment` asks for something impossible.

    `width` is the width in columns of the terminal that the run writes to; "" if it writes to none.
    """
    ranks, hosts = number_of_ranks(options, there), max(1, len(there.hosts))
    ranks_per_host = -(-ranks // hosts)
    given = environment.get("OMP_NUM_THREADS") or str(max(1, there.cores // ranks_per_host))
    threads = _whole_number(given, "OMP_NUM_THREADS takes the number of threads per rank")
    variables = {name: environment.get(name) or str(threads) for name in THREAD_VARIABLES} | MEMORY_VARIABLES
    if width:
        # The ranks write into the launcher's pipe. These tell them (rich) that a terminal is at its end: the live line.
        variables |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": width}
    if there.mpi == "MPICH":
        line = ["-f", options.hostfile, "-ppn", str(ranks_per_host)] if options.hostfile else []
    else:
        names = [*variables, *(name for name in ("PYTHONPATH", "UCX_NET_DEVICES") if environment.get(name))]
        line = _options_of_open_mpi(options.hostfile, ranks_per_host, names, is_root)
        variables |= _agent_of_open_mpi(environment.get("HYDRA_LAUNCHER_EXEC"))
    # A rank's parent tells of its end what the rank itself cannot.
    parent = [there.python, "-m", "lucid.launch.rank_parent"]
    # Only ranks that take all cores are bound: two runs side by side would be bound to the same first ones. Their
    # parents bind them, as launchers do not heed the cores that a scheduler or taskset has left us.
    if options.gpus:
        parent.append("--gpus")
    elif ranks_per_host * threads == there.cores:
        parent.append("--bind")
    lucid = ["-m", "mpi4py", "-m", "lucid", options.command, *options.arguments]
    warning = ""
    if ranks_per_host > there.cores:
        host = there.hosts[0] if there.hosts else "this machine"
        warning = (
            f"{ranks_per_host} ranks on {host} share {there.cores} cores and take turns: start at most "
            f"{hosts * there.cores} (-n)"
        )
    return Launch((there.mpiexec, "-n", str(ranks), *line, *parent, *lucid), variables, threads, warning)


def _options_of_open_mpi(hosts: str, ranks_per_host: int, variables: Iterable[str], is_root: bool) -> list[str]:
    options = ["--oversubscribe", *(["--hostfile", hosts] if hosts else [])]
    options += ["--map-by", f"ppr:{ranks_per_host}:node", "--bind-to", "none"]
    for name in variables:
        options += ["-x", name]
    return [*options, *(["--allow-run-as-root"] if is_root else [])]


def _agent_of_open_mpi(program: str | None) -> dict[str, str]:
    """Return the variables that make Open MPI reach hosts by `program`: by its names in versions 5 and 4."""
    return {"PRTE_MCA_plm_ssh_agent": program, "OMPI_MCA_plm_rsh_agent": program} if program else {}


def mpi_of(report: str) -> str:
    """Return which MPI a launcher or a library calls itself."""
    if any(name in report for name in ("Open MPI", "OpenRTE", "PRRTE")):
        return "Open MPI"
    if any(name in report for name in ("HYDRA", "MPICH", "Intel(R) MPI", "MVAPICH")):
        return "MPICH"
    return "an unknown MPI"


def look_around(python: str, options: Options) -> Surroundings:
    """Find out with what, and on what, ranks can be started; `RefusedError` where something is missing."""
    mpiexec = _find_mpiexec(python)
    # At once: each takes its time to start.
    questions = [
        _ask([mpiexec, "--version"]),
        _ask([python, "-m", "mpi4py", "--mpi-lib-version"]),
        _ask([python, "-c", "import lucid.backend"]),
    ]
    (_, launcher), (loads_mpi, library), (imports_lucid, said) = map(_answer, questions)
    if not loads_mpi:
        raise RefusedError(f"{python} cannot load MPI ({_last_line(library)}): {python} -m pip install mpi4py mpich")
    if mpi_of(launcher) != mpi_of(library):
        raise RefusedError(
            f"{mpiexec} is of {mpi_of(launcher)}, but mpi4py in {python} loads {mpi_of(library)}: put the mpiexec of "
            f"that first in the PATH, or {python} -m pip install mpich"
        )
    if not imports_lucid:
        raise RefusedError(f"{python} cannot import lucid: {_last_line(said)}")
    try:
        hosts = hostfile.read(Path(options.hostfile)) if options.hostfile else ()
    except ValueError as error:
        raise RefusedError(str(error)) from None
    gpus = len(Machine.read(frozenset(), os.environ.get("CUDA_VISIBLE_DEVICES")).gpus) if options.gpus else 0
    return Surroundings(python, mpiexec, mpi_of(launcher), available_cores(), gpus, hosts)


def _find_mpiexec(python: str) -> str:
    beside = os.path.join(os.path.dirname(python), "mpiexec")
    found = beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise RefusedError(f"there is no mpiexec beside {python} or in the PATH: {python} -m pip install mpich")
    return found


def _ask(command: Sequence[str]) -> subprocess.Popen[str] | None:
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace"
        )
    except OSError:
        return None


def _answer(process: subprocess.Popen[str] | None) -> tuple[bool, str]:
    """Return whether the command did what it was asked, and what it printed."""
    if process is None:
        return False, ""
    output, _ = process.communicate()
    return process.returncode == 0, output.replace("\0", "")  # with which Open MPI ends its version


def _last_line(text: str) -> str:
    return text.rstrip("\n").rpartition("\n")[2]


def main(python: str, arguments: Sequence[str]) -> int:
    """Start what `arguments` ask for, and do not return; or return the exit code where nothing is started."""
    try:
        return _start(python, parse(arguments))
    except RefusedError as refusal:
        if refusal.with_usage:
            print(USAGE, end="", file=sys.stderr)
        _say(str(refusal))
        return ExitCode.REFUSED


def _start(python: str, options: Options) -> int:
    if options.wants_help:
        print(USAGE, end="")
        return 0
    there = look_around(python, options)
    if options.supervision and not options.dry_run:
        return _become(_supervisor(options, there))
    width = "" if options.dry_run or not sys.stdout.isatty() else _width_of_the_terminal()
    launch = plan(options, there, os.environ, width, is_root=os.geteuid() == 0)
    if launch.warning:
        _say(f"warning: {launch.warning}")
    if options.dry_run:
        print(f"threads per rank: {launch.threads}")
        print(" ".join(map(_quoted, launch.command)))
        return 0
    if lost := hostfile.unusable(there.hosts, python):
        _tell_of(list(lost.values()))
        return ExitCode.FAILED
    os.environ.update(launch.variables)
    return _become(launch.command)


def _width_of_the_terminal() -> str:
    return os.environ.get("COLUMNS") or str(os.get_terminal_size().columns or WIDTH_OF_A_TERMINAL)


def _supervisor(options: Options, there: Surroundings) -> list[str]:
    command = [there.python, "-m", "lucid.launch.supervise", *options.supervision]
    command += ["-n", str(number_of_ranks(options, there))]
    command += ["--hostfile", options.hostfile] if options.hostfile else []
    command += ["--gpus"] if options.gpus else []
    return [*command, *options.arguments]


def _become(command: Sequence[str]) -> NoReturn:
    """Run `command` in place of this process."""
    # What Python has ignored since it began would be ignored there as well.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(command[0], list(command))
    except OSError as error:
        raise RefusedError(f"{command[0]} cannot be started: {error.strerror}") from None


def _quoted(word: str) -> str:
    """Return the word as a shell takes it, in quotes whatever it is."""
    return "'" + word.replace("'", r"'\''") + "'"


def _tell_of(sentences: Sequence[str]) -> None:
    for sentence in sentences[:MOST_SENTENCES]:
        _say(sentence)
    if len(sentences) > MOST_SENTENCES:
        _say(f"{len(sentences) - MOST_SENTENCES} other hosts cannot be used either")


def _say(sentence: str) -> None:
    print(f"mpirun.sh: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this without a traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
    sys.exit(main(sys.executable, sys.argv[1:]))
