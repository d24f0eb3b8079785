"""CUDA's runtime, as far as it is asked for by name."""

from typing import Any

import numpy as np

from cupy import _places, _transfers, emulation
from cupy._errors import CUDARuntimeError
from cupy.cuda import device, pinned_memory

__all__ = ["CUDARuntimeError"]

is_hip = False
memcpyHostToHost, memcpyHostToDevice, memcpyDeviceToHost, memcpyDeviceToDevice, memcpyDefault = range(5)
eventDefault, eventBlockingSync, eventDisableTiming, eventInterprocess = 0, 1, 2, 4
streamDefault, streamNonBlocking = 0, 1
streamCaptureModeGlobal, streamCaptureModeThreadLocal, streamCaptureModeRelaxed = range(3)
streamCaptureStatusNone, streamCaptureStatusActive, streamCaptureStatusInvalidated = range(3)
hostAllocDefault, hostAllocPortable, hostAllocMapped, hostAllocWriteCombined = 0, 1, 2, 4
cudaDevAttrMultiProcessorCount = 16

_allocated: dict[int, Any] = {}


def getDeviceCount() -> int:
    return len(device._visible())


def getDevice() -> int:
    return device.get_device_id()


def setDevice(number: int) -> None:
    device._set_device(number)


def getDeviceProperties(number: int) -> dict[str, Any]:
    card = device._visible()[number]
    return {
        "name": b"Emulated GPU",
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "totalGlobalMem": device._MEMORY_BYTES,
        "sharedMemPerBlock": 49_152,
        "sharedMemPerBlockOptin": 232_448,
        "warpSize": 32,
        "pciBusID": card + 1,
        "pciDeviceID": 0,
        "pciDomainID": 0,
        "uuid": f"emulated-gpu-{card:03}".encode(),
    }


def deviceGetPCIBusId(number: int) -> str:
    return device.Device(number).pci_bus_id


def runtimeGetVersion() -> int:
    return 13_000


def driverGetVersion() -> int:
    return 13_000


def deviceSynchronize() -> None:
    device.Device().synchronize()


def streamSynchronize(stream: int) -> None:
    emulation.wait("cudaStreamSynchronize", stream)


def streamIsCapturing(stream: int) -> bool:
    return emulation.is_capturing(stream)


def memGetInfo() -> tuple[int, int]:
    return device.Device().mem_info


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    to, of = _places.bytes_at(dst, size), _places.bytes_at(src, size)
    if kind == memcpyHostToDevice:
        _transfers.to_device(of, to, stream, [_places.memory_at(dst, size)])
    elif kind == memcpyDeviceToHost:
        _transfers.to_host(of, to, stream, [_places.memory_at(src, size)])
    else:
        emulation.submit(lambda: np.copyto(to, of), stream)


def memcpy(dst: int, src: int, size: int, kind: int) -> None:
    emulation.wait("cudaMemcpy")
    np.copyto(_places.bytes_at(dst, size), _places.bytes_at(src, size))


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    place = _places.bytes_at(ptr, size)
    emulation.submit(lambda: place.fill(value), stream, [_places.memory_at(ptr, size)])


def hostAlloc(size: int, flags: int) -> int:
    pointer = pinned_memory.alloc_pinned_memory(size)
    _allocated[pointer.ptr] = pointer
    return pointer.ptr


def freeHost(ptr: int) -> None:
    del _allocated[ptr]


def profilerStart() -> None:
    """There is no profiler."""


def profilerStop() -> None:
    """There is no profiler."""
