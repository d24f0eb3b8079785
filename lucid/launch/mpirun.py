"""Starts the ranks of a run: `lucid launch`.

`options.parse` reads the arguments, `look_around` finds out about MPI and this machine, `plan` decides, and touches
nothing. Then this process becomes mpiexec, so that signals reach it; with --restarts it supervises such processes.
"""

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from lucid.errors import ExitCode, LaunchError, LucidError
from lucid.launch import hostfile
from lucid.launch.limits import available_cores
from lucid.launch.options import USAGE, Options, parse, positive_number
from lucid.launch.placement import THREAD_VARIABLES, YIELD_VARIABLE, Machine
from lucid.launch.supervise import Progress, say, supervise

MOST_SENTENCES = 5
WIDTH_OF_A_TERMINAL = 120

# A step frees and takes the same large arrays again: let glibc keep them, rather than fetch fresh pages each time.
MEMORY_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


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


def number_of_ranks(options: Options, there: Surroundings) -> int:
    """Return how many ranks there are to be in all."""
    if options.ranks is not None:
        return options.ranks
    if options.gpus and not there.gpus:
        raise LaunchError("--gpus: this machine has no GPU for a rank: say how many ranks there are to be (-n)")
    return (there.gpus if options.gpus else there.cores) * max(1, len(there.hosts))


def threads_of_a_rank(environment: Mapping[str, str], cores: int, ranks: int) -> int:
    """Return the threads of each of the `ranks` on a host: OMP_NUM_THREADS, or an equal part of its `cores`."""
    given = environment.get("OMP_NUM_THREADS") or str(max(1, cores // ranks))
    return positive_number(given, "OMP_NUM_THREADS takes the number of threads per rank")


def plan(
    options: Options, there: Surroundings, environment: Mapping[str, str], width: str = "", is_root: bool = False
) -> Launch:
    """Return what starts the ranks; `LaunchError` where `environment` asks for something impossible.

    `width` is the width in columns of the terminal that the run writes to; "" if it writes to none.
    """
    ranks, hosts = number_of_ranks(options, there), max(1, len(there.hosts))
    ranks_per_host = -(-ranks // hosts)
    threads = threads_of_a_rank(environment, there.cores, ranks_per_host)
    variables = {name: environment.get(name) or str(threads) for name in THREAD_VARIABLES} | MEMORY_VARIABLES
    if ranks_per_host > there.cores and there.mpi == "MPICH":
        variables[YIELD_VARIABLE] = environment.get(YIELD_VARIABLE) or "1"
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
    command = (there.mpiexec, "-n", str(ranks), *line, *parent, *lucid)
    return Launch(command, variables, threads, _warning(ranks_per_host, there))


def _warning(ranks_per_host: int, there: Surroundings) -> str:
    if ranks_per_host <= there.cores:
        return ""
    host, most = there.hosts[0] if there.hosts else "this machine", max(1, len(there.hosts)) * there.cores
    return f"{ranks_per_host} ranks on {host} share {there.cores} cores and take turns: start at most {most} (-n)"


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
    """Find out with what, and on what, ranks can be started; `LaunchError` where something is missing."""
    mpiexec = _find_mpiexec(python)
    # At once: each takes its time to start.
    questions = _ask([mpiexec, "--version"]), _ask([python, "-m", "mpi4py", "--mpi-lib-version"])
    (_, launcher), (loads_mpi, library) = map(_answer, questions)
    if not loads_mpi:
        reason = library.rstrip("\n").rpartition("\n")[2]
        raise LaunchError(f"{python} cannot load MPI ({reason}): {_install_mpich(python)}")
    if mpi_of(launcher) != mpi_of(library):
        raise LaunchError(
            f"{mpiexec} is of {mpi_of(launcher)}, but mpi4py in {python} loads {mpi_of(library)}: put the mpiexec of "
            f"that first in the PATH, or {_install_mpich(python)}"
        )
    hosts = hostfile.read(Path(options.hostfile)) if options.hostfile else ()
    gpus = len(Machine.read(frozenset(), os.environ.get("CUDA_VISIBLE_DEVICES")).gpus) if options.gpus else 0
    return Surroundings(python, mpiexec, mpi_of(launcher), available_cores(), gpus, hosts)


def _find_mpiexec(python: str) -> str:
    beside = os.path.join(os.path.dirname(python), "mpiexec")
    found = beside if os.access(beside, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise LaunchError(f"there is no mpiexec beside {python} or in the PATH: {_install_mpich(python)}")
    return found


def _install_mpich(python: str) -> str:
    return f"{python} -m pip install mpich"


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


def main(words: Sequence[str], progress: Progress) -> int:
    """Start what the words after `lucid launch` ask for, and do not return.

    Returns the exit code where nothing is started, and with --restarts that of the run. `progress` is asked before a
    restart.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this without a traceback
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be any bytes
    try:
        return _start(parse(words), progress)
    except LucidError as error:
        say(str(error))
        return error.exit_code


def _start(options: Options, progress: Progress) -> int:
    if options.wants_help:
        print(USAGE, end="")
        return ExitCode.FINISHED
    there = look_around(sys.executable, options)
    if options.restarts and not options.dry_run:
        return supervise(options, options.restarts, number_of_ranks(options, there), there.hosts, progress)
    width = "" if options.dry_run or not sys.stdout.isatty() else _width_of_the_terminal()
    launch = plan(options, there, os.environ, width, is_root=os.geteuid() == 0)
    if launch.warning:
        say(f"warning: {launch.warning}")
    if options.dry_run:
        print(f"threads per rank: {launch.threads}")
        print(shlex.join(launch.command))
        return ExitCode.FINISHED
    if unusable := hostfile.unusable(there.hosts):
        _tell_of(list(unusable.values()))
        return ExitCode.FAILED
    os.environ.update(launch.variables)
    return _become(launch.command)


def _width_of_the_terminal() -> str:
    return os.environ.get("COLUMNS") or str(os.get_terminal_size().columns or WIDTH_OF_A_TERMINAL)


def _become(command: Sequence[str]) -> NoReturn:
    """Run `command` in place of this process."""
    # What Python has ignored since it began would be ignored there as well.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execv(command[0], list(command))
    except OSError as error:
        raise LaunchError(f"{command[0]} cannot be started: {error.strerror}") from None


def _tell_of(sentences: Sequence[str]) -> None:
    for sentence in sentences[:MOST_SENTENCES]:
        say(sentence)
    if len(sentences) > MOST_SENTENCES:
        say(f"{len(sentences) - MOST_SENTENCES} other hosts cannot be used either")
