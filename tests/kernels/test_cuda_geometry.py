"""The number of threads of the CUDA kernels, and of elements per access. Nothing here needs a GPU."""

import numpy as np
import pytest

from lucid.errors import ConfigError
from lucid.kernels.cuda.launching import host_bounds, threads_of_row, vector_width


def aligned(*shape, dtype=np.float32):
    room = np.zeros(np.prod(shape, dtype=int) * np.dtype(dtype).itemsize + 16, np.uint8)
    first = -room.ctypes.data % 16
    return room[first : len(room) - 16 + first].view(dtype).reshape(shape)


@pytest.mark.parametrize(
    ("dtype", "width", "vector"),
    [(np.float32, 768, 4), (np.float32, 30_522, 1), (np.float16, 768, 8), (np.float16, 12, 1), (np.float32, 0, 4)],
)
def test_accesses_are_wide_if_rows_consist_of_wide_accesses(dtype, width, vector):
    assert vector_width(width, aligned(2, width, dtype=dtype)) == vector


def test_accesses_are_wide_only_if_all_arrays_are_aligned_to_16_bytes():
    x = aligned(65)
    assert vector_width(64, x[:64], x[:64]) == 4
    assert vector_width(64, x[:64], x[1:]) == 1
    assert vector_width(64, x[:64], None) == 4


@pytest.mark.parametrize(("width", "threads"), [(1, 32), (1024, 32), (1025, 64), (768, 32), (4096, 128), (16_384, 512)])
def test_the_threads_of_a_row_are_whole_warps_that_hold_it(width, threads):
    assert threads_of_row(width, 32, 512, 128) == (threads, max(1, 128 // threads))


def test_a_row_that_is_too_long_is_refused():
    with pytest.raises(ConfigError, match=r"rows of 16,385 elements are too long.*take 16,384"):
        threads_of_row(16_385, 32, 512, 128)


@pytest.mark.parametrize(("bounds", "vector"), [([0, 16_384, 20_000], 4), ([0, 4, 10], 1), ([0, 7], 1)])
def test_accesses_to_blocks_are_wide_if_all_bounds_allow_them(bounds, vector):
    on_device, found = host_bounds(np.array(bounds), aligned(bounds[-1]))
    assert found == vector
    np.testing.assert_array_equal(on_device, bounds)
