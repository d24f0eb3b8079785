"""Compilation of CUDA C++ by NVRTC, once per machine and form; a folder keeps the machine code.

A program is one `.cu` file of this folder. A form of it is compiled for one architecture, one type of element, one
number of elements per memory access, and the constants of its geometry, which the Python file of the same name chooses.
Compilation needs no GPU.
"""

import functools
import hashlib
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lucid.errors import ConfigError
from lucid.files import read_bytes, written_aside
from lucid.kernels.cache import compiling_message, kernel_folder, locked

SOURCES = Path(__file__).parent

# Subnormal numbers are kept, division and roots are exactly rounded, and multiply-add is fused. These are NVRTC's
# defaults, made explicit because CuPy's own compiler has others.
_FLAGS = "-std=c++17", "-ftz=false", "-prec-div=true", "-prec-sqrt=true", "-fmad=true"


@dataclass(frozen=True)
class Variant:
    """One form of a program: `element` is "float32" or "bfloat16", `vector` the number of elements per access."""

    program: str
    element: str
    vector: int
    constants: tuple[tuple[str, int], ...]

    @property
    def source(self) -> Path:
        """The program's file."""
        return SOURCES / f"{self.program}.cu"

    @property
    def definitions(self) -> tuple[str, ...]:
        """The compiler's flags that define the form."""
        element = {"float32": "float"}.get(self.element, self.element)
        pairs = (("ELEMENT", element), ("VECTOR", self.vector), *self.constants)
        return tuple(f"-D{name}={value}" for name, value in pairs)


def variant(program: str, element: str, vector: int, **constants: int) -> Variant:
    """Return a form of a program, with values for the constants that its source leaves undefined."""
    return Variant(program, element, vector, tuple(constants.items()))


def machine_code(form: Variant, architecture: str) -> bytes:
    """Return the cubin of a form for an architecture such as "sm_90", from the disk or compiled and stored there.

    Raises `ConfigError` if NVRTC cannot be loaded.
    """
    nvrtc = _nvrtc()
    folder = kernel_folder(_digest_of_sources(), SOURCES)
    with locked(folder) as is_locked:
        kept = None if folder is None else folder / _file_name(form, architecture, nvrtc.getVersion())
        if kept is not None and kept.exists():
            return read_bytes(kept)
        _announce(folder, is_locked)
        cubin, _ = compiled(form, architecture)
        if kept is not None:
            # A full disk is no reason to stop: the kernel is compiled but not stored.
            with suppress(ConfigError), written_aside(kept, ConfigError) as file:
                file.write(cubin)
        return cubin


def compiled(form: Variant, architecture: str, *more_flags: str) -> tuple[bytes, str]:
    """Return the cubin and the compiler's messages."""
    nvrtc = _nvrtc()
    program = nvrtc.createProgram(form.source.read_text(), form.source.name, (), ())
    try:
        flags = f"-arch={architecture}", *_FLAGS, f"-I{SOURCES}", *form.definitions, *more_flags
        nvrtc.compileProgram(program, flags)
        # CuPy strips the last byte as the end of a string. The driver does not need it, but NVIDIA's tools do.
        return nvrtc.getCUBIN(program) + b"\0", nvrtc.getProgramLog(program).strip("\0\n ")
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip("\0\n ")
        raise ConfigError(f"{form.source} does not compile for {architecture} ({error}): {log}") from error
    finally:
        nvrtc.destroyProgram(program)


def _nvrtc() -> Any:
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (RuntimeError, ImportError, OSError) as error:
        raise ConfigError(
            f"the CUDA kernels need NVRTC, which cannot be loaded ({error}): "
            "pip install 'lucid-bert[cuda13]' (or cuda12)"
        ) from error
    return nvrtc


@functools.cache
def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.cu"), *SOURCES.glob("*.cuh"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _file_name(form: Variant, architecture: str, version: tuple[int, int]) -> str:
    how = hashlib.sha256(repr((_FLAGS, form.definitions, version)).encode()).hexdigest()[:16]
    return f"{form.program}-{form.element}x{form.vector}-{architecture}-{how}.cubin"


@functools.cache
def _announce(folder: Path | None, is_locked: bool) -> None:
    sys.stderr.write(compiling_message(folder, is_locked))
    sys.stderr.flush()
