"""In the place of NVRTC, in CuPy's module for it: a C++ compiler makes libraries of the same sources, for this CPU.

What it calls a cubin is a shared library, which the stand-in's driver loads. Kernels of CuPy see CuPy's own headers,
but for the two that speak to a GPU's units, and CUDA's for bfloat16. Threads are those of `emulation.hpp`; those of a
kernel in which none waits for another run one after the other, without a context of their own.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import building

_FLAGS = (
    # Products are fused into additions, as NVRTC does it.
    *("-std=c++17", "-O1", "-mfma", "-fexpensive-optimizations", "-ffp-contract=fast"),
    *("-shared", "-fPIC", "-fno-strict-aliasing", "-w"),
    # An access that is not on a multiple of its size ends the process, as on a GPU.
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
)
_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')
# Without these threads cannot meet, and take no contexts of their own.
_MEETS = re.compile(r"__sync|__shfl|__shared__")
_OF_CUPY = "cupy/carray.cuh"
_COMPILATION_FAILED = 6
_FUNCTIONS = (
    *("NVRTCError", "getVersion", "getSupportedArchs", "createProgram", "compileProgram", "destroyProgram"),
    *("getCUBIN", "getPTX", "getProgramLog", "addNameExpression"),
)


class NVRTCError(RuntimeError):
    """A source that does not compile."""

    def __init__(self, status: int) -> None:
        super().__init__(f"NVRTC_ERROR_COMPILATION ({status})")
        self.status = status


class _Program:
    def __init__(self, source: str, name: str) -> None:
        self.source, self.name, self.binary, self.log = source, name, b"", ""


_programs: dict[int, _Program] = {}


def _digest() -> str:
    contents = [path.read_bytes() for path in (*building.sources(), *building.headers(), Path(__file__))]
    return hashlib.sha256(b"\0".join([*contents, building.compiler_version()])).hexdigest()


def take_the_place_of(module: ModuleType) -> None:
    """Let what Python calls in CuPy's module for NVRTC be what is here."""
    for name in _FUNCTIONS:
        setattr(module, name, globals()[name])
    # CuPy keeps what it compiles by its sources alone, and those are the same for a card.
    os.environ["CUPY_CACHE_DIR"] = str(building.kept("cupy", _digest()))


def getVersion() -> tuple[int, int]:
    """Return what no NVRTC returns, so that what is kept of one is not taken for the other's."""
    return 13, 1_000_000 + int(_digest()[:8], 16)


def getSupportedArchs() -> tuple[int, ...]:
    return 80, 90, 100


def createProgram(src: str, name: str, headers: Sequence[str] = (), include_names: Sequence[str] = ()) -> int:
    program = _Program(src, name)
    _programs[id(program)] = program
    return id(program)


def compileProgram(prog: int, options: Sequence[str]) -> None:
    program = _programs[prog]
    defined = tuple(option for option in options if option.startswith(("-D", "-I")))
    if _OF_CUPY in program.source:
        header, expanded = "for_cupy.hpp", program.source
        defined = (f"-I{building.FOLDER / 'include'}", *defined, f"-I{_libcudacxx()}", f"-I{building.cuda_headers()}")
    else:
        header, expanded = "threads.hpp", _run(program, ("-E", "-P", *defined), program.source)
    meets = _MEETS.search(expanded) is not None
    entries = "\n".join(f"RUNS({name}, {str(meets).lower()})" for name in _KERNEL.findall(expanded))
    source = f'#include "{header}"\n#line 1 "{program.name}"\n{program.source}\n{entries}\n'
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "kernels.so")
        _run(program, (*_FLAGS, f"-I{building.FOLDER}", *defined, "-o", str(library)), source)
        program.binary = library.read_bytes()


def _libcudacxx() -> Path:
    """Return the folder of the headers that CUDA's own include, as CuPy brings it."""
    found = importlib.util.find_spec("cupy")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "_core/include/cupy/_cccl/libcudacxx"


def _run(program: _Program, arguments: tuple[str, ...], source: str) -> str:
    command = [str(building.COMPILER), *arguments, "-xc++", "-"]
    finished = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        program.log = finished.stderr
        raise NVRTCError(_COMPILATION_FAILED)
    return finished.stdout


def getCUBIN(prog: int) -> bytes:
    return _programs[prog].binary


def getPTX(prog: int) -> bytes:
    """Return what CuPy asks for of an empty program, to learn which headers there are."""
    return _digest().encode()


def addNameExpression(prog: int, name: str) -> None:
    raise NotImplementedError(f"the stand-in compiles no templates by their names: {name}")


def getProgramLog(prog: int) -> str:
    return _programs[prog].log


def destroyProgram(prog: int) -> None:
    del _programs[prog]
