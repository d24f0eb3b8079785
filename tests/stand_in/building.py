"""Builds the stand-in for CUDA's runtime and driver, once per machine, and loads it."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from lucid.errors import ConfigError
from lucid.files import written_aside
from lucid.kernels.compiled import kept_in, locked

FOLDER = Path(__file__).parent
COMPILER = shutil.which("g++")
_EMULATED = FOLDER.parent / "emulated"
_FLAGS = (
    *("-std=c++17", "-O1", "-g", "-fPIC", "-shared", "-Wall", "-Wextra"),
    # What runs kernels' threads is there once, for all of them. Fortified, longjmp would not leave a thread's stack.
    *("-DOF_THIS_PROGRAM=", "-U_FORTIFY_SOURCE"),
    # CuPy's module for NCCL asks for a library of this name, and this one is there already.
    *("-Wl,-soname,libnccl.so.2", "-pthread", "-lrt"),
)


def sources() -> list[Path]:
    """Return the sources of the stand-in, and of what runs kernels' threads."""
    return [*sorted(FOLDER.glob("*.cpp")), _EMULATED / "emulation.cpp"]


def headers() -> list[Path]:
    """Return their headers, and those of kernels."""
    return [*sorted(FOLDER.glob("*.hpp")), *sorted(FOLDER.glob("include/**/*.cuh")), _EMULATED / "emulation.hpp"]


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
    folder = kept_in(digest, FOLDER)
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
    found = importlib.util.find_spec("nvidia")
    for folder in () if found is None else found.submodule_search_locations or ():
        for header in Path(folder).glob("cu*/include/cuda_runtime_api.h"):
            return header.parent
    raise ConfigError("the stand-in for CUDA needs CUDA's headers: pip install -e '.[gpu-ci]'")
