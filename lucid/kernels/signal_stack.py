"""A stack for signals alone, for threads whose own stack pointer is not to be trusted (sigaltstack(2)).

Python has all its handlers run on such a stack where a thread has one (SA_ONSTACK).
"""

import ctypes
from typing import Any

_DISABLED = 2
# A handler of Python's takes little; what the kernel saves beside it, with the registers of AMX, about 11 KB.
_BYTES = 1 << 16
# Stacks are kept for ever: a signal may come as long as their thread is there.
_stacks: list[Any] = []


class _Stack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def use_signal_stack() -> None:
    """Have signals that come to this thread handled on a stack of their own, unless it has one."""
    sigaltstack = ctypes.CDLL(None).sigaltstack
    present = _Stack()
    if sigaltstack(None, ctypes.byref(present)) == 0 and present.flags & _DISABLED:
        memory = ctypes.create_string_buffer(_BYTES)
        _stacks.append(memory)
        sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, _BYTES)), None)
