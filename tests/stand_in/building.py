"""Builds the stand-in for CUDA's runtime and driver, once per machine, and loads it."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from lucid.errors import ConfigError
from lucid.files import written_aside
from lucid.kernels.cache import kernel_folder, locked

FOLDER = Path(__file__).parent
COMPILER = shutil.which("g++")
_FLAGS = (
    *("-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra"),
    # Fortified, longjmp would not leave the stack of a kernel's thread.
    "-U_FORTIFY_SOURCE",
    # CuPy's module for NCCL asks for a library of this name, and this one is there already.
    *("-Wl,-soname,libnccl.so.2", "-pthread", "-lrt"),
)


def why_no_stand_in() -> str:
    """Return what keeps the real CuPy from running over the stand-in for CUDA here; "" if nothing."""
    headers = (header for folder in _of_nvidia() for header in folder.glob("cu*/include/crt/host_defines.h"))
    if importlib.util.find_spec("cupy") is None or not any(headers):
        return "CuPy and CUDA's headers are not installed: pip install -e '.[gpu-ci]'"
    cpu = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or COMPILER is None or not re.search(r"\bfma\b", cpu.read_text()):
        return "the stand-in for CUDA needs g++, and a CPU of x86-64 with fused multiply-adds"
    return ""


def sources() -> list[Path]:
    """Return the sources of the stand-in, and of what runs kernels' threads."""
    return sorted(FOLDER.glob("*.cpp"))


def headers() -> list[Path]:
    """Return their headers, and those of kernels."""
    return [*sorted(FOLDER.glob("*.hpp")), *sorted(FOLDER.glob("include/**/*.cuh"))]


@functools.cache
def library() -> ctypes.CDLL:
    """Return the stand-in. It is compiled if there is none of these sources yet."""
    contents = [path.read_bytes() for path in (*sources(), *headers())]
    digest = hashlib.sha256(b"\0".join([*contents, repr(_FLAGS).encode(), str(cuda_headers()).encode()])).hexdigest()
    built = kept("stand-in", digest) / "stand_in.so"
    with locked(built.parent):
        if not built.exists():
            _build(built)
    return ctypes.CDLL(str(built), os.RTLD_GLOBAL)


def _build(built: Path) -> None:
    with tempfile.TemporaryDirectory() as aside:
        made = Path(aside, built.name)
        compiler_version()
        command = str(COMPILER), *_FLAGS, f"-I{cuda_headers()}", *map(str, sources()), "-o", str(made)
        subprocess.run(command, check=True)
        with written_aside(built, ConfigError) as file:
            file.write(made.read_bytes())


def kept(name: str, digest: str) -> Path:
    """Return a folder for what is made of sources of this digest."""
    folder = kernel_folder(digest, FOLDER)
    if folder is None:
        raise ConfigError("there is no folder to keep the stand-in for CUDA in")
    (folder / name).mkdir(exist_ok=True)
    return folder / name


@functools.cache
def compiler_version() -> bytes:
    """Return what the C++ compiler says of itself."""
    if COMPILER is None:
        raise ConfigError("the stand-in for CUDA needs g++")
    return subprocess.run([COMPILER, "--version"], check=True, capture_output=True).stdout


@functools.cache
def cuda_headers() -> Path:
    """Return the folder of CUDA's headers, as the runtime's wheel has it."""
    for folder in _of_nvidia():
        for header in folder.glob("cu*/include/cuda_runtime_api.h"):
            return header.parent
    raise ConfigError("the stand-in for CUDA needs CUDA's headers: pip install -e '.[gpu-ci]'")


def _of_nvidia() -> list[Path]:
    """Return the folders of NVIDIA's wheels."""
    found = importlib.util.find_spec("nvidia")
    return [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
