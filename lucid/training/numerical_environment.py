"""What can change a bit of the results beside the settings: threads, kernels, and the library of the matrix products.

A checkpoint records them, and a run under the exact reduction that goes on with others says so.
"""

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from lucid import kernels
from lucid.backend import CPU, gpu_software
from lucid.kernels import threads


def limit_threads(count: int | None) -> None:
    """Let this process's matrix products and kernels take `count` threads; None leaves what the launcher set."""
    if count is not None:
        threadpool_limits(limits=count)
        threads.limit(count)


def numerical_environment(device: str) -> dict[str, str]:
    """Return what the results of this process on `device` depend on, by name."""
    if device != CPU:
        return {**(gpu_software() or {}), "products": kernels.product_library(device)}
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    blas = sorted(
        {f"{library['internal_api']} {library['version']} {library.get('architecture', '')}" for library in libraries}
    )
    return {
        "threads_per_rank": str(max((library["num_threads"] for library in libraries), default=1)),
        "blas": ", ".join(blas) or "unknown",
        "numpy": np.__version__,
        "products": kernels.product_library(),
        "kernels": getattr(kernels.of(np.empty(0, np.float32)), "__name__", "unknown"),
    }
