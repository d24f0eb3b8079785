"""NVRTC, whose part a C++ compiler takes: it compiles the same sources, with `emulation.hpp` in CUDA's place.

What it calls a cubin is a shared library, whose functions run_NAME start kernels. What runs their threads is compiled
once, and kept where lucid keeps its kernels.
"""

import atexit
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lucid.errors import ConfigError
from lucid.files import written_aside
from lucid.kernels.compiled import kept_in, locked

_COMPILER = shutil.which("g++") or shutil.which("clang++")
_FOLDER = Path(__file__).parents[2]
_HEADER, _RUNTIME = _FOLDER / "emulation.hpp", _FOLDER / "emulation.cpp"


def _fused() -> tuple[str, ...]:
    """Return what has products fused into additions, as CUDA fuses them: GCC does so among optimizations only."""
    has_instruction = re.search(r"^flags\b.*\bfma\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return "-ffp-contract=fast", "-fexpensive-optimizations", *(["-mfma"] if has_instruction else [])


# An access that is not on a multiple of its size ends the process, as on a GPU.
_FLAGS = (
    *("-std=c++17", "-O1", *_fused(), "-fPIC", "-fno-strict-aliasing", "-w"),
    # Fortified, longjmp refuses to go from one thread's stack to another's.
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-U_FORTIFY_SOURCE"),
)
_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')


class NVRTCError(RuntimeError):
    """A source that does not compile."""


class _Program:
    def __init__(self, source: str, name: str) -> None:
        self.source, self.name, self.binary, self.log = source, name, b"", ""


_programs: dict[int, _Program] = {}


@functools.cache
def getVersion() -> tuple[str, str]:
    """Return what no NVRTC returns, so that what is kept of one is not taken for the other's."""
    if _COMPILER is None:
        raise RuntimeError("there is no C++ compiler to emulate the GPU with")
    compiler = subprocess.run([_COMPILER, "--version"], check=True, capture_output=True).stdout
    flags = " ".join(_FLAGS).encode()
    own = _HEADER.read_bytes(), _RUNTIME.read_bytes(), Path(__file__).read_bytes(), flags, compiler
    return "emulated", hashlib.sha256(b"\0".join(own)).hexdigest()


def createProgram(src: str, name: str, headers: Sequence[str] = (), include_names: Sequence[str] = ()) -> int:
    program = _Program(src, name)
    _programs[id(program)] = program
    return id(program)


def compileProgram(prog: int, options: Sequence[str]) -> None:
    program = _programs[prog]
    defined = [option for option in options if option.startswith(("-D", "-I"))]
    expanded = _run(program, ("-E", "-P", "-xc++", *defined, "-"), program.source)
    entries = "\n".join(f"EMULATED({name})" for name in _KERNEL.findall(expanded))
    source = f'#include "{_HEADER.name}"\n#line 1 "{program.name}"\n{program.source}\n{entries}\n'
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "kernels.so")
        arguments = *_FLAGS, "-shared", f"-I{_FOLDER}", *defined, str(_runtime()), "-xc++", "-", "-o", str(library)
        _run(program, arguments, source)
        program.binary = library.read_bytes()


@functools.cache
def _runtime() -> Path:
    """Return what runs the threads of each program, as an object file: it takes as long to compile as a program."""
    _, digest = getVersion()
    folder = kept_in(digest, _FOLDER)
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="lucid-emulation-")
        atexit.register(temporary.cleanup)
        folder = Path(temporary.name)
    runtime = folder / "emulation.o"
    with locked(folder), tempfile.TemporaryDirectory() as aside:
        if not runtime.exists():
            compiled = Path(aside, "emulation.o")
            subprocess.run([str(_COMPILER), *_FLAGS, "-c", str(_RUNTIME), "-o", str(compiled)], check=True)
            with written_aside(runtime, ConfigError) as file:
                file.write(compiled.read_bytes())
    return runtime


def _run(program: _Program, arguments: tuple[str, ...], source: str) -> str:
    getVersion()
    finished = subprocess.run([str(_COMPILER), *arguments], input=source, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        program.log = finished.stderr
        raise NVRTCError("NVRTC_ERROR_COMPILATION")
    return finished.stdout


def getCUBIN(prog: int) -> bytes:
    return _programs[prog].binary


def getProgramLog(prog: int) -> str:
    return _programs[prog].log


def destroyProgram(prog: int) -> None:
    del _programs[prog]
