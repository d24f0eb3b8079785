"""What stands in for CUDA runs kernels as a card would, and refuses or fails where a card would."""

import signal
from pathlib import Path

import numpy as np
import pytest
from endings import ending_of

pytestmark = pytest.mark.emulated


def run_kernel(cupy, signature, body):
    """Run a kernel on 32 threads and an array of as many numbers, and return what it leaves there."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(f'extern "C" __global__ void kernel({signature}) {{ {body} }}', "kernel.cu", (), ())
    nvrtc.compileProgram(program, ())
    module = cupy.cuda.function.Module()
    module.load(nvrtc.getCUBIN(program))
    # What CuPy's pool hands out is followed by more of the pool; this by memory that cannot be touched.
    x = cupy.ndarray(32, np.float32, cupy.cuda.MemoryPointer(cupy.cuda.Memory(128), 0))
    x[...] = cupy.arange(32)
    module.get_function("kernel")((1,), (32,), (x,))
    return x.get()


ORDERS = ["", "last first", *map(str, range(5))]


class TestKernels:
    @pytest.mark.parametrize("order", ORDERS)
    def test_threads_exchange_numbers_and_wait_for_each_other(self, cupy, monkeypatch, order):
        monkeypatch.setenv("EMULATED_ORDER", order)
        body = "float y = __shfl_xor_sync(0xFFFFFFFFu, x[threadIdx.x], 1); __syncthreads(); x[31 - threadIdx.x] = y;"
        assert run_kernel(cupy, "float *x", body).tolist() == [n ^ 1 for n in reversed(range(32))]

    @pytest.mark.parametrize(
        "body",
        [
            "__shared__ float y; y = x[threadIdx.x]; __syncthreads(); x[threadIdx.x] = y;",
            "__shared__ float y[32]; y[threadIdx.x] = x[threadIdx.x]; x[threadIdx.x] = y[31 - threadIdx.x];",
            "__shared__ float y[32]; copy_float_later(y + threadIdx.x, x + threadIdx.x, true);"
            " float z = y[threadIdx.x]; wait_for_copies(); __syncthreads(); x[threadIdx.x] = z;",
        ],
        ids=["all write one number", "no barrier", "nobody waits for the copies"],
    )
    def test_what_depends_on_an_order_that_a_gpu_does_not_promise_is_seen(self, cupy, monkeypatch, body):
        made = set()
        for order in ORDERS:
            monkeypatch.setenv("EMULATED_ORDER", order)
            made.add(tuple(run_kernel(cupy, "float *x", body)))
        assert len(made) > 1

    def test_products_are_fused_into_additions(self, cupy):
        if "fma" not in Path("/proc/cpuinfo").read_text():
            pytest.skip("this CPU has no instruction that multiplies and adds")
        body = "float y = x[threadIdx.x] / 8192; x[threadIdx.x] = (1 + y) * (1 + y) - (1 + 2 * y);"
        # Without, the squares are rounded to multiples of 2**-23.
        np.testing.assert_array_equal(run_kernel(cupy, "float *x", body), np.arange(32) ** 2 * 2.0**-26)

    @pytest.mark.parametrize(
        ("body", "ending", "message"),
        [
            ("x[threadIdx.x + 32] = 1;", signal.SIGSEGV, ""),
            ("*reinterpret_cast<double *>(x + 1) = 1;", signal.SIGILL, ""),
            ("x[0] = 2147483647 + static_cast<int>(blockDim.x);", signal.SIGILL, ""),
            ("if (threadIdx.x < 3) __syncthreads();", signal.SIGABRT, "wait for others that do not come"),
            ("__shfl_sync(0xFFFFFFFFu, 1, 35);", signal.SIGABRT, "with one that does not exist"),
            ("copy_later(x, x + 1, true);", signal.SIGABRT, "not on a multiple of its size"),
        ],
    )
    def test_what_a_gpu_would_not_survive_or_not_do_ends_the_process(self, cupy, capfd, body, ending, message):
        assert ending_of(lambda: run_kernel(cupy, "float *x", body)) == ending
        assert message in capfd.readouterr().err

    def test_a_source_that_does_not_compile_is_an_error_of_nvrtc(self, cupy):
        with pytest.raises(cupy.cuda.nvrtc.NVRTCError):
            run_kernel(cupy, "float *x", "nonsense;")
