"""Lets the functions of CUDA's runtime inside CuPy's wheel go to the stand-in's.

CuPy has the runtime linked into one of its modules. That module's table of symbols says where each function begins:
there a jump to the function of the same name is written, before CuPy calls any. What the stand-in has not got ends the
process, and says its name.
"""

import ctypes
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path

_SYMBOL_TABLE, _FUNCTION = 2, 2
# mov rax, ADDRESS; jmp rax
_JUMP = b"\x48\xb8%s\xff\xe0"
# mov rdi, ADDRESS; before the jump: what is called is given it.
_FIRST_ARGUMENT = b"\x48\xbf%s"
_WRITABLE, _READ_ONLY = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC, mmap.PROT_READ | mmap.PROT_EXEC

_libc = ctypes.CDLL(None)
# What the jumps point to, and the names that they hand over.
_kept: list[object] = []


def redirect(module: Path, library: ctypes.CDLL) -> None:
    """Let each function cuda* of an extension module jump to the one of `library`, a stand-in for CUDA.

    Raises `ImportError` if the module has no such functions, or no table of symbols.
    """
    places = _functions(module.read_bytes())
    functions = {name: place for name, place in places.items() if name.startswith("cuda")}
    if "cudaMalloc" not in functions:
        raise ImportError(f"{module} has no symbols of CUDA's runtime: the stand-in cannot take its place")
    loaded = ctypes.CDLL(str(module))
    initialise = f"PyInit_{module.name.partition('.')[0]}"
    base = _address(getattr(loaded, initialise)) - places[initialise][0]
    for name, (offset, size) in functions.items():
        code = _jump(name, library)
        if size < len(code):
            raise ImportError(f"{name} in {module} is too short for a jump")
        _write(base + offset, code)
    _kept.append((loaded, library))


def redirect_exported(loaded: ctypes.CDLL, names: Iterable[str], library: ctypes.CDLL) -> None:
    """Let functions of a loaded library jump to those of `library`."""
    for name in names:
        _write(_address(getattr(loaded, name)), _jump(name, library))
    _kept.append((loaded, library))


def _jump(name: str, library: ctypes.CDLL) -> bytes:
    """Return code that goes on in a function of `library`, or ends the process where there is none of this name."""
    found = getattr(library, name, None)
    if found is not None:
        return _JUMP % struct.pack("<Q", _address(found))
    text = ctypes.create_string_buffer(name.encode())
    _kept.append(text)
    first = _FIRST_ARGUMENT % struct.pack("<Q", ctypes.addressof(text))
    return first + _JUMP % struct.pack("<Q", _address(library.stand_in_lacks))


def _address(function: object) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _functions(elf: bytes) -> dict[str, tuple[int, int]]:
    """Return where each function of an ELF file for 64 bits begins in memory, and how many bytes it has."""
    (begin,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, begin + i * size) for i in range(count)]
    found = {}
    for section in sections:
        if section[1] != _SYMBOL_TABLE:
            continue
        names = sections[section[6]][4]
        for name, info, _, _, at, length in struct.iter_unpack("<IBBHQQ", elf[section[4] : section[4] + section[5]]):
            if info & 15 == _FUNCTION and length:
                found[elf[names + name : elf.index(0, names + name)].decode()] = at, length
    return found


def _write(address: int, code: bytes) -> None:
    page = address // mmap.PAGESIZE * mmap.PAGESIZE
    span = ctypes.c_size_t(address + len(code) - page)
    for protection in (_WRITABLE, None, _READ_ONLY):
        if protection is None:
            ctypes.memmove(address, code, len(code))
        elif _libc.mprotect(ctypes.c_void_p(page), span, protection) != 0:
            raise ImportError("the system lets nobody write into a module's code")
