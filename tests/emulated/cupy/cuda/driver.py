"""What of CUDA's driver is asked for by name."""

from cupy._errors import CUDADriverError

__all__ = ["CUDADriverError"]
