"""`lucid launch`, from its arguments to its exit code.

`options.parse` reads the arguments, `look_around` finds the programs, cores, GPUs and hosts, and `plan` is a pure
function that returns the command. `attempt` runs it, and with --restarts `supervise` runs one after the other.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lucid import output
from lucid.errors import ExitCode, LaunchError, LucidError
from lucid.launch import attempt, hostfile
from lucid.launch.attempt import Ended, say
from lucid.launch.limits import available_cores
from lucid.launch.options import COMMAND_VARIABLE, USAGE, Options, command_line, parse, positive_number
from lucid.launch.placement import THREAD_VARIABLES, YIELD_VARIABLE, Machine
from lucid.launch.supervise import Progress, supervise

MOST_SENTENCES = 5
WIDTH_OF_A_TERMINAL = 120

# Each step frees and allocates the same large arrays: glibc keeps them, and need not fetch fresh pages each time.
MEMORY_VARIABLES = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}


@dataclass(frozen=True)
class Surroundings:
    """The programs, the name of the MPI, the cores and GPUs of each host, and the hosts.

    Without a hostfile `hosts` is empty: the only host is this machine. `room` says how many ranks may run on each host,
    if the hostfile does.
    """

    python: str
    mpiexec: str
    mpi: str
    cores: int
    gpus: int = 0
    hosts: tuple[str, ...] = ()
    room: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Launch:
    """The command to run, the environment variables to add, and the threads of each rank."""

    command: tuple[str, ...]
    variables: dict[str, str]
    threads: int
    warning: str = ""


def number_of_ranks(options: Options, there: Surroundings) -> int:
    """Return the number of ranks on all hosts together."""
    room = sum(there.room[host] for host in there.hosts) if there.room else None
    if options.ranks is not None:
        if room is not None and options.ranks > room:
            raise LaunchError(
                f"-n is {options.ranks}, but {options.hostfile} has {room} lines, one for each rank that its hosts "
                "have room for"
            )
        return options.ranks
    if room is not None:
        return room
    if options.gpus and not there.gpus:
        raise LaunchError("--gpus: this machine has no GPU: give the number of ranks (-n)")
    return (there.gpus if options.gpus else there.cores) * max(1, len(there.hosts))


def ranks_of_hosts(ranks: int, there: Surroundings) -> dict[str, int]:
    """Return how many ranks run on each host: the first hosts have as many as they have room for."""
    shares = {}
    for host in there.hosts:
        shares[host] = min(there.room[host], ranks)
        ranks -= shares[host]
    return {host: share for host, share in shares.items() if share}


def threads_of_a_rank(environment: Mapping[str, str], cores: int, ranks: int) -> int:
    """Return the threads of each of the `ranks` on a host: OMP_NUM_THREADS, or an equal part of its `cores`."""
    given = environment.get("OMP_NUM_THREADS") or str(max(1, cores // ranks))
    return positive_number(given, "OMP_NUM_THREADS takes the number of threads per rank")


def plan(
    options: Options, there: Surroundings, environment: Mapping[str, str], width: str = "", is_root: bool = False
) -> Launch:
    """Return the command that starts the ranks. Raises `LaunchError` for a wrong value in `environment`.

    `width` is the width in columns of the terminal that the run writes to, or "" if it writes to none.
    """
    ranks, hosts = number_of_ranks(options, there), max(1, len(there.hosts))
    ranks_per_host = max(ranks_of_hosts(ranks, there).values()) if there.room else -(-ranks // hosts)
    threads = threads_of_a_rank(environment, there.cores, ranks_per_host)
    variables = {name: environment.get(name) or str(threads) for name in THREAD_VARIABLES} | MEMORY_VARIABLES
    if ranks_per_host > there.cores and there.mpi == "MPICH":
        variables[YIELD_VARIABLE] = environment.get(YIELD_VARIABLE) or "1"
    if width:
        # The ranks write to a pipe of the launcher. These tell rich that it ends in a terminal, for the live line.
        variables |= {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": width}
    if there.mpi == "MPICH":
        line = ["-f", options.hostfile] if options.hostfile else []
        line += [] if there.room or not line else ["-ppn", str(ranks_per_host)]
    else:
        given = ("PYTHONPATH", "UCX_NET_DEVICES", COMMAND_VARIABLE)
        names = [*variables, *(name for name in given if environment.get(name))]
        placed = "slot" if there.room else f"ppr:{ranks_per_host}:node"
        line = _options_of_open_mpi(options.hostfile, placed, names, is_root)
        variables |= _agent_of_open_mpi(environment.get("HYDRA_LAUNCHER_EXEC"))
    parent = [there.python, "-P", "-m", "lucid.launch.rank_parent"]
    # Ranks are bound only if they take all cores: otherwise two runs would be bound to the same first cores. Their
    # parents bind them, because MPI's launchers ignore the affinity mask that a scheduler or taskset has set.
    if options.gpus:
        parent.append("--gpus")
    elif ranks_per_host * threads == there.cores:
        parent.append("--bind")
    command = (there.mpiexec, "-n", str(ranks), *line, *parent, *_program(options))
    return Launch(command, variables, threads, _warning(ranks_per_host, there))


def _program(options: Options) -> list[str]:
    """Return the arguments of Python for the program of a rank."""
    if options.command == "script":
        # Its prints come as they are made, though they go to a pipe. No -P: mpi4py replaces the first folder on the
        # path by the script's. That is the working folder then, and not one of PYTHONPATH.
        return ["-u", "-m", "mpi4py", *options.arguments]
    return ["-P", "-m", "mpi4py", "-m", "lucid", options.command, *options.arguments]


def _warning(ranks_per_host: int, there: Surroundings) -> str:
    if ranks_per_host <= there.cores:
        return ""
    host, most = there.hosts[0] if there.hosts else "this machine", max(1, len(there.hosts)) * there.cores
    return f"{ranks_per_host} ranks on {host} share {there.cores} cores and take turns: start at most {most} (-n)"


def _options_of_open_mpi(hosts: str, placed: str, variables: Iterable[str], is_root: bool) -> list[str]:
    options = ["--oversubscribe", *(["--hostfile", hosts] if hosts else [])]
    options += ["--map-by", placed, "--bind-to", "none"]
    for name in variables:
        options += ["-x", name]
    return [*options, *(["--allow-run-as-root"] if is_root else [])]


def _agent_of_open_mpi(program: str | None) -> dict[str, str]:
    """Return the variables by which Open MPI 5 and 4 reach hosts with `program`."""
    return {"PRTE_MCA_plm_ssh_agent": program, "OMPI_MCA_plm_rsh_agent": program} if program else {}


def mpi_of(report: str) -> str:
    """Return the MPI that the version text of a launcher or a library names."""
    if any(name in report for name in ("Open MPI", "OpenRTE", "PRRTE")):
        return "Open MPI"
    if any(name in report for name in ("HYDRA", "MPICH", "Intel(R) MPI", "MVAPICH")):
        return "MPICH"
    return "an unknown MPI"


def look_around(python: str, options: Options) -> Surroundings:
    """Return the programs and the machines to start ranks with. Raises `LaunchError` if something is missing."""
    mpiexec = _find_mpiexec(python)
    # Both run at the same time, because each is slow to start.
    questions = _ask([mpiexec, "--version"]), _ask([python, "-P", "-m", "mpi4py", "--mpi-lib-version"])
    (_, launcher), (loads_mpi, library) = map(_answer, questions)
    if not loads_mpi:
        reason = library.rstrip("\n").rpartition("\n")[2]
        raise LaunchError(f"{python} cannot load MPI ({reason}): {_install_mpich(python)}")
    if mpi_of(launcher) != mpi_of(library):
        raise LaunchError(
            f"{mpiexec} belongs to {mpi_of(launcher)}, but mpi4py in {python} loads {mpi_of(library)}: put the mpiexec "
            f"of {mpi_of(library)} first in the PATH, or {_install_mpich(python)}"
        )
    lines = hostfile.read(Path(options.hostfile)) if options.hostfile else {}
    room = lines if any(count > 1 for count in lines.values()) else {}
    if lines:
        _check_for_shells(mpiexec, os.environ.get("HYDRA_LAUNCHER_EXEC", ""))
    gpus = len(Machine.read(frozenset(), os.environ.get("CUDA_VISIBLE_DEVICES")).gpus) if options.gpus else 0
    return Surroundings(python, mpiexec, mpi_of(launcher), available_cores(), gpus, tuple(lines), room)


def _find_mpiexec(python: str) -> str:
    own = os.path.join(os.path.dirname(python), "mpiexec")
    found = own if os.access(own, os.X_OK) else shutil.which("mpiexec")
    if found is None:
        raise LaunchError(f"there is no mpiexec in the folder of {python} or in the PATH: {_install_mpich(python)}")
    return found


def _check_for_shells(mpiexec: str, agent: str) -> None:
    """Raise `LaunchError` for names that shells of other hosts would change: launchers quote them badly or not at all.

    MPICH's puts double quotes around the path of its proxy, which is beside `mpiexec`, and none around `agent`.
    """
    if re.search(r'["$`\\\n]', mpiexec):
        raise LaunchError(f"the shell of another host would read more than a path in {mpiexec!r}: rename its folder")
    if re.search(r"[^\w./+@%:=-]", agent):
        raise LaunchError(
            f"the shell of another host would not read HYDRA_LAUNCHER_EXEC={agent!r} as one word: rename it"
        )


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
    """Return whether the command succeeded, and what it printed."""
    if process is None:
        return False, ""
    output, _ = process.communicate()
    return process.returncode == 0, output.replace("\0", "")  # Open MPI ends its version with one


def main(words: Sequence[str], progress: Progress) -> int:
    """Run `lucid launch` with the words after it, and return its exit code. `progress` is called before a restart."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends this process without a traceback
    output.set_up()
    os.environ.setdefault(COMMAND_VARIABLE, command_line(sys.argv))
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
    ranks = number_of_ranks(options, there)
    if options.dry_run:
        launch = plan(options, there, os.environ, is_root=os.geteuid() == 0)
        _warn(launch)
        print(f"threads per rank: {launch.threads}")
        print(shlex.join(launch.command))
        return ExitCode.FINISHED

    def start(ranks: int, hosts: tuple[str, ...]) -> Ended:
        return _attempt(replace(options, ranks=ranks), replace(there, hosts=hosts))

    attempt.block_signals()
    if options.restarts:
        room = there.room or dict.fromkeys(there.hosts, -(-ranks // max(1, len(there.hosts))))
        return supervise(options, options.restarts, ranks, room, start, progress)
    return start(ranks, there.hosts).status


def _attempt(options: Options, there: Surroundings) -> Ended:
    """Start the ranks on the hosts that `there` names, and wait for their end."""
    if unusable := hostfile.unusable(there.hosts):
        _tell_of(list(unusable.values()))
        return Ended(ExitCode.FAILED, stop_asked=False)
    descriptors = []
    if there.hosts:
        # A hostfile in memory leaves nothing behind, however this process ends.
        descriptors.append(os.memfd_create("hosts"))
        os.write(descriptors[0], _hostfile(options, there).encode())
        options = replace(options, hostfile=f"/dev/fd/{descriptors[0]}")
    try:
        width = _width_of_the_terminal() if sys.stdout.isatty() else ""
        launch = plan(options, there, os.environ, width, is_root=os.geteuid() == 0)
        _warn(launch)
        return attempt.run(launch.command, launch.variables, descriptors, can_save=options.command == "train")
    except OSError as error:
        raise LaunchError(f"{there.mpiexec} cannot be started: {error.strerror}") from None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _hostfile(options: Options, there: Surroundings) -> str:
    """Return the hostfile of the launcher."""
    if not there.room:
        return "".join(f"{host}\n" for host in there.hosts)
    shares = ranks_of_hosts(number_of_ranks(options, there), there)
    form = "{}:{}\n" if there.mpi == "MPICH" else "{} slots={}\n"
    return "".join(form.format(host, share) for host, share in shares.items())


def _warn(launch: Launch) -> None:
    if launch.warning:
        say(f"warning: {launch.warning}")


def _width_of_the_terminal() -> str:
    return os.environ.get("COLUMNS") or str(os.get_terminal_size().columns or WIDTH_OF_A_TERMINAL)


def _tell_of(sentences: Sequence[str]) -> None:
    for sentence in sentences[:MOST_SENTENCES]:
        say(sentence)
    if len(sentences) > MOST_SENTENCES:
        say(f"{len(sentences) - MOST_SENTENCES} other hosts cannot be used either")
