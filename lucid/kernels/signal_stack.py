"""An alternate signal stack (sigaltstack(2)) for threads whose own stack pointer cannot be trusted.

Python installs all its handlers with SA_ONSTACK, so that they run on such a stack if the thread has one.
"""

import ctypes
from typing import Any

_DISABLED = 2
# Python's handlers need little; the registers that the kernel saves, with those of AMX, need about 11 KB.
_BYTES = 1 << 16
# Stacks are never freed: a signal may arrive as long as their thread exists.
_stacks: list[Any] = []


class _Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def use_signal_stack() -> None:
    """Give this thread an alternate signal stack, unless it has one."""
    sigaltstack = ctypes.CDLL(None).sigaltstack
    present = _Stack()
    if sigaltstack(None, ctypes.byref(present)) == 0 and present.flags & _DISABLED:
        memory = ctypes.create_string_buffer(_BYTES)
        _stacks.append(memory)
        sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, _BYTES)), None)
