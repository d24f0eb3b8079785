"""What determines the bits of results besides the settings: threads, kernels, and the library of matrix products.

A checkpoint records it. A run with the exact reduction that resumes in another environment says so.
"""

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from lucid import kernels
from lucid.backend import CPU, gpu_software
from lucid.kernels import threads


def limit_threads(count: int | None) -> None:
    """Limit matrix products and kernels of this process to `count` threads; None keeps the launcher's limit."""
    if count is not None:
        threadpool_limits(limits=count)
        threads.limit(count)


def numerical_environment(device: str) -> dict[str, str]:
    """Return what the bits of results on `device` depend on, by name."""
    if device != CPU:
        return {**(gpu_software() or {}), "products": kernels.product_library(device)}
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    blas = sorted(
        {f"{library['internal_api']} {library['version']} {library.get('architecture', '')}" for library in libraries}
    )
    products = kernels.product_library()
    blas_threads = max((library["num_threads"] for library in libraries), default=1)
    return {
        # oneDNN computes on the threads that the kernels have.
        "threads_per_rank": str(threads.count() if products.startswith("oneDNN") else blas_threads),
        "blas": ", ".join(blas) or "unknown",
        "numpy": np.__version__,
        "products": products,
        "kernels": getattr(kernels.of(np.empty(0, np.float32)), "__name__", "unknown"),
    }
