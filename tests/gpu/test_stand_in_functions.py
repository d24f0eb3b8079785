"""Functions of the real CuPy over what stands in for CUDA, and what a watcher sees of them."""

from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest

pytestmark = pytest.mark.emulated


FLOATS = np.array([0.5, -2.25, 3.0, 7.75], np.float32)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
INTEGERS = np.array([3, 1, 2, 0])


class TestFunctionsOfCuPy:
    """CuPy's own kernels, which are compiled from what it generates, make what NumPy makes."""

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16])
    @pytest.mark.parametrize(
        "function",
        [
            *(
                lambda xp, x: x + x,
                lambda xp, x: 2 * x - 1,
                lambda xp, x: x * x,
                lambda xp, x: -x,
                lambda xp, x: abs(x),
            ),
            *(lambda xp, x: xp.isfinite(x), lambda xp, x: x < 1, lambda xp, x: xp.where(x > 0, x, x).astype(x.dtype)),
            *(lambda xp, x: xp.maximum(x, 1), lambda xp, x: x.T, lambda xp, x: xp.ascontiguousarray(x.reshape(2, 2).T)),
            *(lambda xp, x: x[1:][::2], lambda xp, x: x.astype(np.float32).sum(), lambda xp, x: xp.zeros_like(x)),
        ],
    )
    def test_by_elements(self, cupy, function, dtype):
        found, expected = (function(xp, xp.asarray(FLOATS.astype(dtype))) for xp in (cupy, np))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.get(), expected)

    @pytest.mark.parametrize(
        "function",
        [
            *(lambda xp: xp.asarray(ROWS).sum(axis=0), lambda xp: xp.asarray(ROWS).max(axis=-1, keepdims=True)),
            *(lambda xp: xp.asarray(ROWS).argmax(axis=1), lambda xp: xp.asarray(ROWS)[xp.asarray(INTEGERS) % 3]),
            *(lambda xp: (xp.asarray(INTEGERS) > 1).sum(), lambda xp: xp.asarray(INTEGERS).cumsum()),
            *(lambda xp: xp.asarray(INTEGERS).astype(np.uint64) << np.uint64(32), lambda xp: xp.arange(7)),
            *(lambda xp: xp.full((2, 3), 0.5), lambda xp: xp.linspace(-1, 1, 5)),
            *(lambda xp: xp.flatnonzero(xp.asarray(INTEGERS) > 1), lambda xp: xp.asarray(ROWS)[xp.asarray(ROWS) > 3]),
            lambda xp: xp.take_along_axis(xp.asarray(ROWS), xp.asarray(INTEGERS[:3, None]), 1),
        ],
    )
    def test_by_rows_and_indices(self, cupy, function):
        found, expected = function(cupy), function(np)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found.get(), expected)

    @pytest.mark.parametrize("name", ["exp", "tanh", "sqrt", "log"])
    def test_up_to_rounding(self, cupy, name):
        found, expected = (getattr(xp, name)(abs(xp.asarray(FLOATS))) for xp in (cupy, np))
        np.testing.assert_allclose(found.get(), expected, rtol=1e-6)


class TestWatching:
    """A watcher sees what CuPy launches, and nothing is computed."""

    @pytest.fixture
    def told(self, cupy):
        """A context that collects what a watcher sees."""
        from watching import watched

        @contextmanager
        def telling():
            found = []
            with watched(lambda *each: found.append(each)):
                yield found

        return telling

    def test_kernels_and_copies_are_told_with_their_bytes_and_not_done(self, cupy, told):
        x, y = cupy.ones((4, 8), np.float32), cupy.ones((4, 8), np.float32)
        ids = cupy.zeros(2, np.int64)
        cupy.cuda.Device().synchronize()
        with told() as found:
            x[:, ::2] += y[:1, ::2]
            cupy.take(x, ids, axis=0)
            x[...] = 0
            x[...] = y
            x.set(np.zeros((4, 8), np.float32))
            x.get()
        assert found == [
            # What is repeated is read once.
            ("cupy_add__float32_float32_float32", 4 * (16 + 4 + 16), (4, 4)),
            # Of a table only what is looked up is read.
            ("cupy_take", 4 * (16 + 16) + 8 * 2, (2, 8)),
            ("memset", 4 * 32, ()),
            ("copy", 2 * 4 * 32, ()),
            ("copy from the host", 4 * 32, ()),
            ("copy to the host", 4 * 32, ()),
        ]
        np.testing.assert_array_equal(x.get(), np.ones((4, 8)))

    def test_memory_may_be_more_than_the_machine_has(self, cupy, told):
        with told() as found, cupy.cuda.using_allocator(None):
            cupy.empty(2 * 10**10, np.uint8).fill(1)
        assert found == [("cupy_fill", 2 * 10**10, (2 * 10**10,))]

    def test_products_of_cublas_are_told_as_something_else(self, cupy, told):
        x = cupy.ones((4, 4), np.float32)
        with told() as found:
            cupy.matmul(x, x)
        assert found == [("?", 0, ())]

    def test_what_the_watcher_raises_is_an_error_of_cuda(self, cupy, capfd):
        from watching import watched

        def refuse(*told):
            raise ValueError("what is this?")

        x = cupy.ones(4, np.float32)
        with watched(refuse), pytest.raises(cupy.cuda.driver.CUDADriverError):
            x += 1
        assert "what is this?" in capfd.readouterr().err
