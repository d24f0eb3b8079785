"""Which card this is, and what drives it: names and versions, of which a library that is missing has its reason."""

import importlib
import platform
import subprocess
from collections.abc import Callable
from typing import Any

from card.results import Results


def check(results: Results, tiny: bool) -> bool:
    """Add a line for each thing, and return whether there is a card that CuPy can use."""
    results.add(name="Python", version=f"{platform.python_version()} on {platform.platform()}")
    for name, version in FOUND.items():
        try:
            results.add(name=name, version=str(version()))
        except Exception as error:
            results.add(name=name, version=f"none: {error}")
    return is_there()


def is_there() -> bool:
    import cupy

    return bool(cupy.cuda.is_available())


def card() -> str:
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    found = cupy.cuda.runtime.getDeviceProperties(0)
    memory, processors = found["totalGlobalMem"] / 2**30, found["multiProcessorCount"]
    name = found["name"].decode()
    return f"{count} x {name}, sm_{found['major']}{found['minor']}, {processors} multiprocessors, {memory:.0f} GiB"


def driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit,mig.mode.current"]
    finished = subprocess.run([*query, "--format=csv"], capture_output=True, text=True, check=True, timeout=20)
    return "; ".join(finished.stdout.split("\n")).strip("; ")


def runtime() -> str:
    import cupy

    runtime = cupy.cuda.runtime
    return f"{runtime.runtimeGetVersion()}, the driver knows {runtime.driverGetVersion()}"


def compiler() -> str:
    from cupy.cuda import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


def products() -> str:
    from lucid.kernels.cuda import cublaslt

    return str(cublaslt.library().version)


def collectives() -> str:
    from cupy.cuda import nccl

    return str(nccl.get_version())


def messages() -> str:
    from mpi4py import MPI

    return MPI.Get_library_version().split("\n")[0].strip("\0 ")


def version_of(module: str) -> Callable[[], Any]:
    return lambda: importlib.import_module(module).__version__


FOUND: dict[str, Callable[[], Any]] = {
    "card": card,
    "driver": driver,
    "CUDA": runtime,
    "CuPy": version_of("cupy"),
    "NVRTC": compiler,
    "cuBLASLt": products,
    "NCCL": collectives,
    "MPI": messages,
    "NumPy": version_of("numpy"),
    "PyTorch": version_of("torch"),
    "transformers": version_of("transformers"),
}
