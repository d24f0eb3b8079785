"""The real CuPy over what stands in for CUDA has memory, streams and graphs as on a card."""

import signal
import subprocess
import sys
from contextlib import suppress

import ml_dtypes
import numpy as np
import pytest
from endings import ending_of

pytestmark = pytest.mark.emulated


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


class TestMemory:
    def test_what_nothing_was_written_into_is_no_number(self, cupy):
        for dtype in (np.float32, np.float64, ml_dtypes.bfloat16):
            pointer = cupy.cuda.MemoryPointer(cupy.cuda.Memory(16), 0)
            found = cupy.ndarray(16 // np.dtype(dtype).itemsize, dtype, pointer).get().astype(np.float64)
            assert np.isnan(found).all()

    def test_what_is_given_back_within_an_operation_waits_for_its_end(self, cupy):
        """A product is done by Python, which may collect garbage meanwhile."""
        import host_work

        runtime, done = cupy.cuda.runtime, []
        memory = runtime.malloc(512)

        def work():
            runtime.free(memory)
            runtime.deviceSynchronize()
            done.append(runtime.pointerGetAttributes(memory).type)

        host_work.submit(work, 0)
        host_work.submit(lambda: done.append("next"), 0)
        runtime.deviceSynchronize()
        assert done == [runtime.memoryTypeDevice, "next"]
        assert runtime.pointerGetAttributes(memory).type != runtime.memoryTypeDevice

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
