"""How tests start ranks, and find them again."""

import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# The ranks of a test share few cores: each has one thread, and leaves its core to the others while MPICH waits.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
FEW_CORES = {**_THREADS, "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}

# Arguments of Python for `lucid train` on a rank.
TRAIN = ("-m", "mpi4py", "-m", "lucid", "train")


def run_to_end(command: Sequence[str], seconds: float, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command, with these variables more, and return it with all that it printed.

    All of its processes are killed, and the test fails, when it takes longer than `seconds`.
    """
    process = subprocess.Popen(
        command,
        env=os.environ | FEW_CORES | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"not done after {seconds} s: {' '.join(map(str, command))}\n{output}")
    return subprocess.CompletedProcess(command, process.returncode, output)


def is_stand_in(cupy: Any) -> bool:
    """Return whether the GPUs that CuPy finds are what stands in for them."""
    return cupy.cuda.is_available() and cupy.cuda.runtime.getDeviceProperties(0)["name"] == b"Emulated GPU"


def with_emulation(**variables: str) -> dict[str, str]:
    """The environment of a process whose CuPy finds emulated GPUs, and of the kernels for them, whatever is tested."""
    folder = str(Path(__file__).parent / "stand_in")
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "LUCID_KERNELS": "", **variables}


def descendants(pid: int) -> list[int]:
    """Return the processes that stem from `pid`, parents before children."""
    children = defaultdict(list)
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # The name, in parentheses, may hold anything.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children[parent].append(int(status.parent.name))
    found = [pid]
    for process in found:
        found += children[process]
    return found[1:]


def rank_processes(mpiexec_pid: int) -> list[int]:
    """Return the processes of the ranks that an mpiexec has started: those that `lucid train` runs in."""
    processes = descendants(mpiexec_pid)
    parents = {process for process in processes if descendants(process)}
    return [process for process in processes if process not in parents]


def executable(path: Path, text: str) -> str:
    """Write a program, whose folder is made if it is missing, and return its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)
