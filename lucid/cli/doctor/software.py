"""Versions of Python, of the libraries that lucid needs, of MPI, and of the software for GPUs."""

import importlib.metadata
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from lucid import kernels
from lucid.backend import gpu_software
from lucid.cli.doctor.findings import Finding, Level, ok_if
from lucid.distributed.communicators.mpi import MPICommunicator, name_and_version
from lucid.distributed.connection import ProcessGroup
from lucid.errors import ConfigError
from lucid.kernels import onednn
from lucid.version import __version__

_SECONDS = 20
_PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
_NVIDIA = Path("/proc/driver/nvidia/version")


def libraries() -> dict[str, str]:
    """Return the installed versions of the libraries that lucid needs; "" for a missing one."""
    return {name: _version(name) for name, _ in _requirements()}


def judge_software(group: ProcessGroup, of_hosts: dict[str, dict[str, str]]) -> Iterator[Finding]:
    """Judge the software of the first rank, which alone calls this, and the `libraries` of all hosts."""
    yield Finding(Level.OK, "Python", f"{platform.python_version()} ({sys.executable}), lucid {__version__}")
    yield _libraries(of_hosts)
    yield _mpi(group)
    yield _products()
    yield _gpu()


def _libraries(of_hosts: dict[str, dict[str, str]]) -> Finding:
    first, *others = of_hosts
    own = of_hosts[first]
    for other in others:
        different = [name for name in own if of_hosts[other].get(name) != own[name]]
        if different:
            here, there = (", ".join(f"{name} {of_hosts[host].get(name) or 'missing'}" for name in different)
                           for host in (other, first))  # fmt: skip
            text = f"{other} has {here}, but {first} {there}: install the same on all hosts"
            return Finding(Level.ERROR, "libraries", text)
    bad = [f"{name}>={least}" for name, least in _requirements() if _numbers(own[name]) < _numbers(least)]
    if bad:
        text = f"missing or too old: {sys.executable} -m pip install {shlex.join(bad)}"
        return Finding(Level.ERROR, "libraries", text)
    return Finding(Level.OK, "libraries", ", ".join(f"{name} {version}" for name, version in own.items()))


def _mpi(group: ProcessGroup) -> Finding:
    if isinstance(group, MPICommunicator):
        loaded = re.search(r"/\S*/libmpi\S*", Path("/proc/self/maps").read_text())
        return Finding(Level.OK, "MPI", f"{group.library} ({loaded[0] if loaded else 'its file is not known'})")
    # A single process does not initialise MPI.
    version, library = (_ask_mpi4py(question) for question in ("--mpi-lib-version", "--mpi-library"))
    if version is None:
        text = f"mpi4py finds no MPI library: {sys.executable} -m pip install mpi4py mpich"
        return Finding(Level.ERROR, "MPI", text)
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    text = f"{name_and_version(version)} ({library}), started by {launcher or 'nothing'}"
    return ok_if(launcher is not None, "MPI", text, f"there is no mpiexec: {sys.executable} -m pip install mpich")


def _ask_mpi4py(question: str) -> str | None:
    """Return the first line of mpi4py's answer, or None."""
    finished = subprocess.run(
        [sys.executable, "-P", "-m", "mpi4py", question], capture_output=True, text=True, check=False, timeout=_SECONDS
    )
    lines = finished.stdout.strip("\0\n").splitlines()
    return lines[0].strip() if finished.returncode == 0 and lines else None


def _products() -> Finding:
    try:
        name = kernels.product_library()
    except ConfigError as error:
        return Finding(Level.ERROR, "products", str(error))
    fast = onednn.is_installed() or (platform.system(), platform.machine()) != ("Linux", "x86_64")
    advice = f"oneDNN makes them faster, and knows bfloat16: {sys.executable} -m pip install {onednn.WHEEL}"
    return ok_if(fast, "products", f"by {name}", advice)


def _gpu() -> Finding:
    try:
        found = gpu_software()
    except ConfigError as error:
        if _NVIDIA.exists():
            return Finding(Level.WARNING, "GPU", f"NVIDIA's driver is there, but {error}")
        return Finding(Level.OK, "GPU", "no GPU (CuPy is installed)")
    if found is None:
        advice = "CuPy, without which it is not used, is missing: pip install 'lucid-bert[cuda13]' (or cuda12)"
        return ok_if(not _NVIDIA.exists(), "GPU", "a GPU of NVIDIA's" if _NVIDIA.exists() else "no GPU", advice)
    advice = f"gradients between GPUs need it: {sys.executable} -m pip install nvidia-nccl-cu13 (or -cu12)"
    text = ", ".join(f"{name} {version}".strip() for name, version in found.items())
    return ok_if(found["NCCL"] != "missing", "GPU", text, advice)


def _requirements() -> list[tuple[str, str]]:
    """Return the names and the least versions of the libraries that lucid needs on every machine."""
    if _PYPROJECT.exists():  # lucid runs from its repository
        texts = tomllib.loads(_PYPROJECT.read_text())["project"]["dependencies"]
    else:
        texts = importlib.metadata.requires("lucid-bert") or []
    return [(name, least) for name, _, least in (text.partition(">=") for text in texts if ";" not in text)]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])]
