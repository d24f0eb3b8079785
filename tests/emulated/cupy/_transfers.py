"""Copies that the host does not wait for.

What they bring to the host is not there before it has waited, and what they take from it may not change before: as soon
as it waits, both are seen to. In between, the target holds nonsense.
"""

from typing import Any

import numpy as np

from cupy import _places, emulation

_NONSENSE = 0xA5


def to_host(source: np.ndarray, target: np.ndarray, stream: Any, memory: list[Any]) -> None:
    """Copy from the device's memory into the host's."""
    _places.refuse_pageable(target.ctypes.data, stream)

    def start() -> None:
        snapshot = source.copy()
        target.reshape(-1).view(np.uint8)[...] = _NONSENSE
        emulation.running(stream)._leave_pending(lambda: np.copyto(target, snapshot))

    emulation.submit(start, stream, memory)


def to_device(source: np.ndarray, target: np.ndarray, stream: Any, memory: list[Any]) -> None:
    """Copy from the host's memory into the device's. What is not pinned has been read on return."""
    _places.refuse_pageable(source.ctypes.data, stream)
    if not _places.is_pinned(source.ctypes.data):
        emulation.submit(lambda: np.copyto(target, source), stream, memory)
        return

    where = emulation.caller()

    def start() -> None:
        np.copyto(target, source)
        before = source.tobytes()

        def check() -> None:
            if source.tobytes() != before:
                raise RuntimeError(f"pinned memory was written to while a copy from it was under way, begun at {where}")

        emulation.running(stream)._leave_pending(check)

    emulation.submit(start, stream, memory)
