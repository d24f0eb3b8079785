"""The real CuPy over what stands in for CUDA does what a card would, as late as it may, and refuses the same."""

import faulthandler
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from launching import is_stand_in

pytestmark = pytest.mark.emulated

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def cupy():
    found = pytest.importorskip("cupy")
    if not is_stand_in(found):
        pytest.skip("the CuPy here is not over the stand-in")
    return found


@pytest.fixture
def stream(cupy):
    """A stream that can capture, as the current one."""
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream
        # Of a capture that was spoiled CuPy says so where it is asked whether there is one.
        with suppress(RuntimeError):
            if not stream.is_capturing():
                return
        with pytest.raises(RuntimeError):
            stream.end_capture()


def memcpy_async(*arguments):
    import cupy

    cupy.cuda.runtime.memcpyAsync(*arguments)


def pinned(cupy, count):
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(8 * count), np.float64, count)


def ending_of(action):
    """Return what ends a process that does this."""
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return -os.waitstatus_to_exitcode(status)


class TestMemory:
    def test_what_nothing_was_written_into_is_no_number(self, cupy):
        for dtype in (np.float32, np.float64, BFLOAT16):
            pointer = cupy.cuda.MemoryPointer(cupy.cuda.Memory(16), 0)
            found = cupy.ndarray(16 // np.dtype(dtype).itemsize, dtype, pointer).get().astype(np.float64)
            assert np.isnan(found).all()

    def test_there_is_an_end_of_it(self, cupy):
        _, total = cupy.cuda.runtime.memGetInfo()
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
            cupy.empty(total + 1, np.uint8)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as raised:
            cupy.cuda.Memory(total + 1)
        assert raised.value.status == 2

    def test_what_was_freed_cannot_be_touched_and_is_not_given_out_again(self, cupy):
        runtime = cupy.cuda.runtime
        first = runtime.malloc(512)
        runtime.free(first)
        second = runtime.malloc(512)
        assert second != first
        host = np.zeros(1)
        with pytest.raises(runtime.CUDARuntimeError, match="InvalidValue"):
            runtime.free(first)
        runtime.free(second)

        def use():
            np.copyto(host, np.ctypeslib.as_array((np.ctypeslib.ctypes.c_double * 1).from_address(second)))

        assert ending_of(use) == signal.SIGSEGV


class TestOrder:
    def test_nothing_is_done_before_the_host_waits(self, cupy, stream, monkeypatch):
        monkeypatch.delenv("EMULATED_STREAMS", raising=False)
        target, x = pinned(cupy, 2), cupy.asarray([3.0, 4.0])
        target[:] = 0
        stream.synchronize()
        (x + 1).get(out=target, blocking=False)
        event = stream.record()
        assert target.tolist() == [0, 0]
        event.synchronize()
        assert target.tolist() == [4, 5]

    def test_page_locked_memory_is_read_late_and_other_memory_at_once(self, cupy, stream, monkeypatch):
        monkeypatch.delenv("EMULATED_STREAMS", raising=False)
        source, host = pinned(cupy, 2), np.array([1.0, 2.0])
        source[:] = host
        x, y = cupy.empty(2), cupy.empty(2)
        x.set(source)
        y.set(host)
        source[:] = host[:] = 5
        assert (x.get().tolist(), y.get().tolist()) == ([5, 5], [1, 2])

    def test_streams_wait_for_each_other_by_events_alone(self, cupy, stream, monkeypatch):
        monkeypatch.delenv("EMULATED_STREAMS", raising=False)
        other, target = cupy.cuda.Stream(non_blocking=True), pinned(cupy, 1)
        x = cupy.ones(1)
        x.get(out=target, blocking=False)
        target[:] = 0
        other.synchronize()
        assert target.tolist() == [0]
        other.wait_event(stream.record())
        other.synchronize()
        assert target.tolist() == [1]

    def test_the_default_stream_waits_for_those_that_block_and_they_for_it(self, cupy):
        blocking, default, target = cupy.cuda.Stream(), cupy.cuda.Stream.null, pinned(cupy, 2)
        with default:
            x = cupy.asarray([1.0, 2.0])
            default.synchronize()
            target[:] = 0
            x[:1].get(stream=blocking, out=target[:1], blocking=False)
            x[1:].get(out=target[1:], blocking=False)
            default.synchronize()
            assert target.tolist() == [1, 2]
            target[:] = 0
            x.get(out=target, blocking=False)
            blocking.synchronize()
            assert target.tolist() == [1, 2]

    @pytest.mark.parametrize(("ordered", "results"), [(False, {12.0, 10.0}), (True, {12.0})])
    def test_what_nothing_orders_is_done_in_an_order_that_is_drawn(self, cupy, stream, monkeypatch, ordered, results):
        other, found = cupy.cuda.Stream(non_blocking=True), set()
        for seed in range(20):
            monkeypatch.setenv("EMULATED_STREAMS", str(seed))
            x = cupy.full(1, 3.0)
            stream.synchronize()
            x += 1
            if ordered:
                other.wait_event(stream.record())
            with other:
                x *= 3
            cupy.cuda.Device().synchronize()
            found.add(float(x[0]))
        assert found == results


class TestCapture:
    def test_a_graph_does_its_work_again_on_what_lies_in_its_memory_then(self, cupy, stream):
        x, total = cupy.asarray([3.0, 1.0, 2.0]), cupy.zeros(3)
        stream.begin_capture()
        y = 2 * x
        total += y
        total[0] = y.max()
        graph = stream.end_capture()
        assert total.get().tolist() == [0, 0, 0]
        graph.launch()
        assert total.get().tolist() == [6, 2, 4]
        x[...] = cupy.asarray([1.0, 1.0, 5.0])
        graph.launch()
        assert total.get().tolist() == [10, 4, 14]

    @pytest.mark.parametrize(
        "operation", [lambda x: x.get(), lambda x: float(x[0]), lambda x: x[x > 0], lambda x: x.set(np.ones(2))]
    )
    def test_cupy_itself_refuses_copies_that_the_host_waits_for(self, cupy, stream, operation):
        x = cupy.ones(2)
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="is capturing"):
            operation(x)
        stream.end_capture()

    @pytest.mark.parametrize(
        "wait",
        [
            lambda stream, x: stream.synchronize(),
            lambda stream, x: x.device.synchronize(),
            lambda stream, x: memcpy_async(x.data.ptr, np.ones(2).ctypes.data, 16, 1, stream.ptr),
        ],
    )
    def test_what_waits_for_the_device_or_the_host_is_refused_and_spoils_the_graph(self, cupy, stream, wait):
        x = cupy.ones(2)
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="StreamCaptureUnsupported"):
            wait(stream, x)
        with pytest.raises(RuntimeError, match="Invalidated"):
            stream.end_capture()

    def test_the_default_stream_cannot_be_captured(self, cupy):
        with pytest.raises(RuntimeError, match="legacy"):
            cupy.cuda.Stream.null.begin_capture()
        with pytest.raises(RuntimeError, match="StreamCaptureUnsupported"):
            cupy.cuda.runtime.streamBeginCapture(0)

    def test_the_default_stream_is_not_drawn_into_the_capture_of_one_that_blocks(self, cupy):
        blocking, x = cupy.cuda.Stream(), cupy.ones(1)
        blocking.begin_capture()
        with cupy.cuda.Stream.null, pytest.raises(RuntimeError, match="StreamCaptureImplicit"):
            x.fill(0)
        with pytest.raises(RuntimeError, match="Invalidated"):
            blocking.end_capture()

    def test_another_stream_joins_by_events(self, cupy, stream):
        other, x = cupy.cuda.Stream(non_blocking=True), cupy.zeros(1)
        stream.begin_capture()
        other.wait_event(stream.record())
        with other:
            x += 1
        stream.wait_event(other.record())
        graph = stream.end_capture()
        assert not other.is_capturing()
        graph.launch()
        graph.launch()
        assert x.get().tolist() == [2]

    def test_another_stream_that_is_not_waited_for_is_an_error(self, cupy, stream):
        other, x = cupy.cuda.Stream(non_blocking=True), cupy.zeros(1)
        stream.begin_capture()
        other.wait_event(stream.record())
        stream.wait_event(other.record())
        with other:
            x += 1
        with pytest.raises(RuntimeError, match="Unjoined"):
            stream.end_capture()

    def test_an_event_from_before_is_refused(self, cupy, stream):
        event = cupy.cuda.Stream(non_blocking=True).record()
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="Isolation"):
            stream.wait_event(event)

    def test_an_event_of_a_capture_cannot_be_waited_for(self, cupy, stream):
        stream.begin_capture()
        event = stream.record()
        with pytest.raises(RuntimeError, match="CapturedEvent"):
            event.synchronize()
        with pytest.raises(RuntimeError, match="Invalidated"):
            stream.end_capture()

    def test_two_captures_do_not_merge(self, cupy, stream):
        other = cupy.cuda.Stream(non_blocking=True)
        stream.begin_capture()
        other.begin_capture()
        with pytest.raises(RuntimeError, match="StreamCaptureMerge"):
            other.wait_event(stream.record())
        for each in (other, stream):
            with pytest.raises(RuntimeError, match="Invalidated"):
                each.end_capture()

    def test_a_graph_that_copies_into_memory_that_was_freed_fails(self):
        finished = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=False)
        assert "cudaErrorIllegalAddress" in finished.stderr


FREED = """
import cupy
stream = cupy.cuda.Stream(non_blocking=True)
with stream:
    memory = cupy.cuda.Memory(512)
    pointer = cupy.cuda.MemoryPointer(memory, 0)
    stream.begin_capture()
    pointer.memset_async(0, 512)
    graph = stream.end_capture()
    del pointer, memory
    graph.launch()
    stream.synchronize()
"""


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


FLOATS = np.array([0.5, -2.25, 3.0, 7.75], np.float32)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
INTEGERS = np.array([3, 1, 2, 0])


class TestFunctionsOfCuPy:
    """CuPy's own kernels, which are compiled from what it generates, make what NumPy makes."""

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
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
    """Who asks what CuPy launches is told, and nothing is done."""

    @pytest.fixture
    def told(self, cupy):
        """What is asked for, as it is told to a watcher."""
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
