"""Runs the CUDA kernels on the CPU: a C++ compiler takes the same sources, with `emulation.hpp` in CUDA's place.

`Emulator.launch` stands in for `launching.launch`, and takes NumPy arrays where that takes CuPy's. So what the kernels
compute, what their Python passes them, and how many threads it starts can be tested without a GPU.
"""

import ctypes
import functools
import mmap
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np

from lucid.kernels.cuda.compiling import SOURCES

COMPILER = shutil.which("g++") or shutil.which("clang++")
# CUDA fuses products into additions, too. An access that is not on a multiple of its size ends the process, as there.
FLAGS = (
    *("-std=c++17", "-O1", "-ffp-contract=fast", "-fPIC", "-shared", "-fno-strict-aliasing", "-w"),
    *("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"),
)
KERNEL = re.compile(r"__global__ void\s+__launch_bounds__\([^)]*\)[\s\\]*(\w+)\(")


def kernels_of(source):
    """The names of the kernels of a source, those that a macro makes among them."""
    text = source.read_text()
    made = re.findall(r"^ACTIVATION\((\w+), \w+\)", text, re.MULTILINE)
    return [name for name in KERNEL.findall(text) if name != "name"] + made + [f"{name}_gradient" for name in made]


class Emulator:
    """Compiles forms of programs into a folder, each when it is first used, and runs their kernels."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.library = functools.cache(self._library)

    def _library(self, form):
        entries = "\n".join(f"EMULATED({name})" for name in kernels_of(form.source))
        name = f"{form.program}-{form.element}-{form.vector}-{'-'.join(str(value) for _, value in form.constants)}"
        source, library = self.folder / f"{name}.cpp", self.folder / f"{name}.so"
        source.write_text(f'#include "emulation.hpp"\n#include "{form.source.name}"\n{entries}\n')
        folders = f"-I{Path(__file__).parents[1] / 'emulated'}", f"-I{SOURCES}"
        subprocess.run([COMPILER, *FLAGS, *folders, *form.definitions, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))

    def launch(self, form, kernel, grid, block, *arguments):
        if 0 in grid:
            return
        run = getattr(self.library(form), f"run_{kernel}")
        shape = (*grid, 1, 1)[:3] + (*block, 1, 1)[:3]
        assert max(grid[1:], default=1) < 2**16, "a grid's second and third size have 16 bits"
        assert np.prod(block) <= 1024, "a block has 1,024 threads at most"
        guarded = Guarded(arguments)
        stored = [guarded.value_of(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(stored))(*(value.ctypes.data for value in stored))
        types = "".join(f"{type_of(argument)} " for argument in arguments)
        run((ctypes.c_uint * 6)(*shape), pointers, types.encode())
        guarded.copy_back()


def type_of(argument):
    """The name of a parameter's type, as emulation.hpp has it; ? for any address."""
    if argument is None:
        return "?"
    assert isinstance(argument, np.ndarray | np.generic), f"{argument!r} has no width that a parameter could have"
    return f"{argument.dtype.name}*" if isinstance(argument, np.ndarray) else argument.dtype.name


class Guarded:
    """Copies of arrays, each in front of a page that cannot be touched: who reads or writes behind its end dies."""

    def __init__(self, arguments):
        self.arrays = {array.ctypes.data: array for array in arguments if isinstance(array, np.ndarray)}
        self.copies = {address: self._copy(array) for address, array in self.arrays.items()}

    def _copy(self, array):
        assert array.flags.c_contiguous
        room = mmap.mmap(-1, (array.nbytes // mmap.PAGESIZE + 2) * mmap.PAGESIZE)
        last = len(room) - mmap.PAGESIZE
        begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + last), mmap.PAGESIZE, 0) == 0
        # As far behind a multiple of 16 bytes as the array, for threads may count on that.
        offset = last - array.nbytes - (last - array.nbytes - array.ctypes.data) % 16
        copy = np.frombuffer(room, array.dtype, array.size, offset)
        copy[...] = array.reshape(-1)
        return copy

    def value_of(self, argument):
        """An array of one element that holds what a parameter is: a number, or an address."""
        if argument is None:
            return np.zeros(1, np.uint64)
        if isinstance(argument, np.ndarray):
            return np.array([self.copies[argument.ctypes.data].ctypes.data], np.uint64)
        return np.array([argument])

    def copy_back(self):
        for address, array in self.arrays.items():
            if array.flags.writeable:
                array.reshape(-1)[...] = self.copies[address]
