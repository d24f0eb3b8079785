"""The emulated GPU refuses what CuPy and CUDA refuse, and has no name that CuPy has not."""

import faulthandler
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

pytestmark = pytest.mark.emulated

MODULES = (
    *("cupy", "cupy.cuda", "cupyx.scipy.special"),
    *(f"cupy.cuda.{name}" for name in ("device", "driver", "function", "graph", "memory", "nccl", "nvrtc")),
    *(f"cupy.cuda.{name}" for name in ("pinned_memory", "runtime", "stream")),
)
CLASSES = (
    *("cupy.ndarray", "cupy.ufunc", "cupy.cuda.Stream", "cupy.cuda.Event", "cupy.cuda.Device", "cupy.cuda.Function"),
    *("cupy.cuda.Memory", "cupy.cuda.MemoryPointer", "cupy.cuda.MemoryPool", "cupy.cuda.Module"),
    *("cupy.cuda.PinnedMemoryPointer", "cupy.cuda.graph.Graph", "cupy.cuda.nccl.NcclCommunicator"),
)
# Prints the public names of modules and classes, and the parameters of functions whose signature can be asked for.
ASK = """
import inspect, json, sys
def parameters(function):
    try:
        return [each.name for each in inspect.signature(function).parameters.values()]
    except (TypeError, ValueError):
        return None
import cupy
lacks_nccl = not hasattr(cupy.cuda, "nccl")
import cupy.cuda.graph, cupy.cuda.nccl, cupyx.scipy.special
names = json.loads(sys.argv[1])
if not cupy.cuda.nccl.available:  # CuPy has nothing of NCCL where NCCL's library is absent.
    names = [name for name in names if ".nccl" not in name]
names = {name: dir(eval(name)) for name in names}
functions = {name: parameters(getattr(cupy, name)) for name in dir(cupy) if callable(getattr(cupy, name))}
print(json.dumps({"names": names, "parameters": functions, "lacks_nccl": lacks_nccl}))
"""


@pytest.fixture(scope="module")
def real():
    """What the real CuPy has."""
    own = Path(__file__).parents[1] / "emulated"
    folders = [folder for folder in os.environ["PYTHONPATH"].split(os.pathsep) if Path(folder).resolve() != own]
    command = [sys.executable, "-c", ASK, json.dumps(MODULES + CLASSES)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No module named 'cupy'" in finished.stderr:
        pytest.skip("CuPy is not installed: pip install -e '.[gpu-ci]'")
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


@pytest.fixture
def stream(cupy):
    """A stream that can capture, as the current one."""
    with cupy.cuda.Stream(non_blocking=True) as stream:
        yield stream
        if stream.is_capturing():
            with pytest.raises(RuntimeError):
                stream.end_capture()


def test_every_name_is_one_of_cupys(cupy, real):
    from cupy.cuda import nccl  # noqa: F401
    from cupyx.scipy import special

    ours = {"cupy": cupy, "cupyx.scipy.special": special}
    for name in real["names"]:
        if name not in ours:
            holder, _, attribute = name.rpartition(".")
            ours[name] = getattr(ours[holder], attribute)
    strange = {
        f"{name}.{each}" for name in ours for each in _own_names(name, ours[name]) if each not in real["names"][name]
    }
    strange.remove("cupy.emulation")
    assert strange == set()


def _own_names(name, of):
    """The public names of a class, or of a module: those that it does not import for itself."""
    for each in dir(of):
        value = getattr(of, each)
        is_imported = inspect.ismodule(of) and getattr(value, "__module__", name) != name
        is_face = name in ("cupy", "cupy.cuda")
        if not each.startswith("_") and (is_face or not (is_imported or inspect.ismodule(value))):
            yield each


def test_nccl_has_to_be_imported_by_its_name(real):
    ask = "import cupy; print(hasattr(cupy.cuda, 'nccl'))"
    ours = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    assert real["lacks_nccl"]
    assert ours.strip() == "False"


def test_functions_of_arrays_take_what_cupys_take(cupy, real):
    from cupy._parameters import PARAMETERS

    assert {name: text.split() for name, text in PARAMETERS.items()} == {
        name: real["parameters"][name] for name in PARAMETERS
    }
    own = (name for name, value in vars(cupy).items() if inspect.isfunction(value) and value.__name__ != "call")
    for name in own:
        if name not in PARAMETERS and real["parameters"][name] is not None and name not in _of_any_number():
            assert list(inspect.signature(getattr(cupy, name)).parameters) == real["parameters"][name], name


def _of_any_number():
    """Functions made of NumPy's that take any number of arrays, or keywords of their own."""
    return {"atleast_1d", "atleast_2d", "broadcast_arrays", "pad", "einsum", "matmul"}


class TestArrays:
    def test_they_are_not_numpys_and_do_not_mix_with_them(self, cupy):
        x, host = cupy.ones(3), np.ones(3)
        assert not isinstance(x, np.ndarray)
        for mix in (
            *(lambda: x + host, lambda: host * x, lambda: np.add(host, x), lambda: cupy.maximum(x, host)),
            *(lambda: x.__setitem__(slice(None), host), lambda: x.__iadd__(host), lambda: np.asarray(x)),
            *(lambda: host.__iadd__(x), lambda: cupy.stack([x, host])),
        ):
            with pytest.raises(TypeError):
                mix()

    def test_numbers_mix_with_them_and_results_are_arrays_of_the_device(self, cupy):
        x = cupy.arange(4, dtype=np.float32)
        for result in (np.float32(2) * x, x + 1, 1 - x, np.exp(x), x.sum(), x[2], x.max(), np.sum(x), np.int64(3) > x):
            assert isinstance(result, cupy.ndarray)
        assert (2 * x).dtype == np.float32
        assert x.sum().shape == ()
        assert np.shape(x) == (4,)

    def test_bfloat16_is_stored_and_computed_with(self, cupy):
        x = cupy.asarray(np.array([1, 2.00390625], np.float32)).astype(ml_dtypes.bfloat16)
        assert (x + x).dtype == ml_dtypes.bfloat16
        assert x.astype(np.float32).get().tolist() == [1, 2]

    def test_an_element_a_slice_and_a_transpose_are_views_and_what_is_taken_by_an_array_is_not(self, cupy):
        x = cupy.zeros((2, 3))
        x[0, 1][...] = 4
        x[...][0, 1] += 1
        x.T[2] += 1
        x[1:].reshape(-1)[0] = 7
        x[cupy.asarray([0])][...] = 9
        assert x.get().tolist() == [[0, 5, 1], [7, 0, 1]]

    def test_what_nothing_was_written_into_is_no_number(self, cupy):
        assert np.isnan(cupy.empty(3).get()).all()
        assert np.isnan(cupy.empty_like(cupy.zeros(3, ml_dtypes.bfloat16)).get().astype(np.float32)).all()
        assert (cupy.empty(3, np.int64).get() > 2**62).all()

    def test_they_begin_where_cupys_do(self, cupy):
        assert [cupy.empty(size, np.uint8).data.ptr % 512 for size in (1, 513, 7)] == [0, 0, 0]

    def test_another_devices_are_refused(self, cupy, monkeypatch):
        monkeypatch.setenv("EMULATED_GPUS", "2")
        x = cupy.ones(3)
        with cupy.cuda.Device(1), pytest.raises(ValueError, match="array device = 0 while current = 1"):
            x + 1

    def test_functions_refuse_what_only_numpys_take(self, cupy):
        x = cupy.ones(3)
        for call in (
            *(lambda: cupy.sum(x, initial=1), lambda: x.sum(where=True), lambda: cupy.std(x, mean=1)),
            *(lambda: cupy.concatenate(arrays=[x]), lambda: cupy.sum(x, 0, None, None, False, 1)),
        ):
            with pytest.raises(TypeError):
                call()
        with pytest.raises(ValueError, match="kind"):
            cupy.argsort(x, kind="quicksort")


class TestWaiting:
    def test_what_makes_the_host_wait_is_counted_by_line(self, cupy):
        x, before = cupy.ones(3), cupy.emulation.synchronisations
        for wait in (
            *(lambda: x.get(), lambda: float(x[0]), lambda: int(x[0]), lambda: bool(x[0]), lambda: x.tolist()),
            *(lambda: x[x > 0], lambda: cupy.flatnonzero(x), lambda: x.nonzero(), lambda: cupy.bincount(x.astype(int))),
            *(cupy.cuda.Stream.null.synchronize, cupy.cuda.Device().synchronize, cupy.cuda.Event().synchronize),
        ):
            wait()
            assert cupy.emulation.synchronisations == before + 1, inspect.getsource(wait)
            before += 1
        assert any(line.startswith(__file__) and line.endswith("nonzero") for line in cupy.emulation.callers)

    def test_what_does_not_is_not(self, cupy):
        x, before = cupy.ones(3), cupy.emulation.synchronisations
        x[x > 0] = 2
        x += cupy.where(x > 1, x, 0)[cupy.argsort(x)]
        x.astype(np.int64).cumsum()
        cupy.cuda.get_current_stream().wait_event(cupy.cuda.get_current_stream().record())
        assert cupy.emulation.synchronisations == before

    def test_a_copy_to_the_host_is_there_once_the_host_has_waited(self, cupy, stream):
        target = pinned(cupy, 2)
        cupy.asarray([3.0, 4.0]).get(out=target, blocking=False)
        event = stream.record()
        assert target.tolist() != [3, 4]
        event.synchronize()
        assert target.tolist() == [3, 4]

    def test_a_stream_that_another_waited_for_has_been_waited_for(self, cupy, stream):
        target = pinned(cupy, 2)
        cupy.asarray([3.0, 4.0]).get(out=target, blocking=False)
        other = cupy.cuda.Stream(non_blocking=True)
        other.synchronize()
        assert target.tolist() != [3, 4]
        other.wait_event(stream.record())
        other.synchronize()
        assert target.tolist() == [3, 4]

    def test_host_memory_that_changes_while_it_is_copied_is_noticed(self, cupy, stream):
        source, x = pinned(cupy, 2), cupy.empty(2)
        source[:] = 1, 2
        x.set(source)
        stream.synchronize()
        source[:] = 3, 4
        x.set(source)
        source[:] = 5, 6
        with pytest.raises(RuntimeError, match=r"pinned memory was written to .* begun at .*test_emulation"):
            stream.synchronize()


def pinned(cupy, count):
    return np.frombuffer(cupy.cuda.alloc_pinned_memory(8 * count), np.float64, count)


class TestCapture:
    def test_a_graph_does_its_work_again_on_what_lies_in_its_memory_then(self, cupy, stream):
        x, total = cupy.asarray([3.0, 1.0, 2.0]), cupy.zeros(3)
        stream.begin_capture()
        y = 2 * x[cupy.argsort(x)]
        total += y
        total[0] = y.max()
        graph = stream.end_capture()
        graph.launch()
        assert total.get().tolist() == [6, 4, 6]
        x[...] = cupy.asarray([1.0, 1.0, 5.0])
        graph.launch()
        assert y.get().tolist() == [2, 2, 10]
        assert total.get().tolist() == [10, 6, 16]

    def test_nothing_is_done_while_a_stream_captures(self, cupy, stream):
        x = cupy.zeros(2)
        stream.begin_capture()
        x += 1
        cupy.copyto(x, x + 1)
        x.fill(4)
        graph = stream.end_capture()
        assert x.get().tolist() == [0, 0]
        graph.launch()
        assert x.get().tolist() == [4, 4]

    def test_kernels_and_copies_from_pinned_memory_are_repeated(self, cupy, stream):
        from lucid.kernels.cuda.casting import round_to_bfloat16

        source, x = pinned(cupy, 1), cupy.empty(1)
        stream.begin_capture()
        x.set(source)
        y = round_to_bfloat16(x.astype(np.float32))
        graph = stream.end_capture()
        for number in (1.5, 2.00390625):
            source[0] = number
            graph.launch()
            assert y.get().tolist() == [ml_dtypes.bfloat16(number)]

    @pytest.mark.parametrize(
        "operation",
        [
            *(lambda x: x.get(), lambda x: float(x[0]), lambda x: x[x > 0], lambda x: np.flatnonzero(x)),
            *(lambda x: x.__matmul__(x), lambda x: type(x).set(x, np.ones(2)), lambda x: x.tolist()),
        ],
    )
    def test_what_waits_for_the_device_or_the_host_is_refused_and_spoils_the_graph(self, cupy, stream, operation):
        x = cupy.ones(2)
        stream.begin_capture()
        with pytest.raises((RuntimeError, NotImplementedError)):
            operation(x)
        with pytest.raises(RuntimeError, match="Invalidated"):
            stream.end_capture()

    def test_numbers_of_the_host_are_refused(self, cupy, stream):
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="of which the graph would keep these numbers"):
            cupy.asarray(np.ones(2))

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

    def test_a_graph_whose_memory_was_freed_is_refused(self, cupy, stream):
        x, y = cupy.ones(1), cupy.ones(1)
        stream.begin_capture()
        y += x
        graph = stream.end_capture()
        graph.launch()
        del x
        with pytest.raises(RuntimeError, match="IllegalAddress"):
            graph.launch()

    def test_what_was_allocated_while_capturing_stays_with_the_graph(self, cupy, stream):
        y = cupy.zeros(1)
        stream.begin_capture()
        y += cupy.full(1, 3.0) * 2
        graph = stream.end_capture()
        graph.launch()
        assert y.get().tolist() == [6]


def run_kernel(cupy, signature, body):
    """Run a kernel on 32 threads and an array of as many numbers, and return what it leaves there."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(f'extern "C" __global__ void kernel({signature}) {{ {body} }}', "kernel.cu")
    nvrtc.compileProgram(program, ())
    module = cupy.cuda.function.Module()
    module.load(nvrtc.getCUBIN(program))
    x = cupy.arange(32, dtype=np.float32)
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
        ("signature", "body", "ending", "message"),
        [
            ("float *x", "x[threadIdx.x + 32] = 1;", signal.SIGSEGV, ""),
            ("float *x", "*reinterpret_cast<double *>(x + 1) = 1;", signal.SIGILL, ""),
            ("float *x", "x[0] = 2147483647 + static_cast<int>(blockDim.x);", signal.SIGILL, ""),
            ("float *x", "if (threadIdx.x < 3) __syncthreads();", signal.SIGABRT, "wait for others that do not come"),
            ("float *x", "__shfl_sync(0xFFFFFFFFu, 1, 35);", signal.SIGABRT, "with one that does not exist"),
            ("float *x", "__shfl_sync(1u, 1, 0);", signal.SIGABRT, "without some of its threads"),
            ("float *x", "copy_later(x, x + 1, true);", signal.SIGABRT, "not on a multiple of its size"),
            ("double *x", "", signal.SIGABRT, "float64* is expected in float32*"),
            ("float *x, int y", "", signal.SIGABRT, "int32 is expected"),
            ("", "", signal.SIGABRT, "too many arguments: float32*"),
        ],
    )
    def test_what_a_gpu_would_not_survive_or_not_do_ends_the_process(
        self, cupy, capfd, signature, body, ending, message
    ):
        child = os.fork()
        if child == 0:
            try:
                faulthandler.disable()
                run_kernel(cupy, signature, body)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -ending
        assert message in capfd.readouterr().err

    def test_what_runs_the_threads_is_compiled_once(self, cupy, monkeypatch, tmp_path):
        from cupy.cuda import nvrtc

        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        first = nvrtc._runtime.__wrapped__()
        assert first.is_relative_to(tmp_path)
        monkeypatch.setattr(nvrtc.subprocess, "run", None)
        assert nvrtc._runtime.__wrapped__() == first


@pytest.fixture
def nccl(cupy, communicator):
    """A communicator of NCCL over all ranks, each with its GPU."""
    from cupy.cuda import nccl
    from mpi4py import MPI

    identifier = MPI.COMM_WORLD.bcast(nccl.get_unique_id())
    with cupy.cuda.Device(communicator.rank), cupy.cuda.Stream(non_blocking=True):
        made = nccl.NcclCommunicator(communicator.size, identifier, communicator.rank)
        yield made
        made.destroy()


@pytest.mark.mpi(min_size=2)
class TestNCCL:
    def test_collectives_have_their_closed_forms(self, cupy, nccl):
        lib, rank, size = cupy.cuda.nccl, nccl.rank_id(), nccl.size()
        stream = cupy.cuda.get_current_stream()
        x, part = cupy.full(2 * size, rank + 1.0, np.float32), cupy.empty(2, np.float32)
        nccl.allReduce(x.data.ptr, x.data.ptr, x.size, lib.NCCL_FLOAT32, lib.NCCL_SUM, stream.ptr)
        total = size * (size + 1) / 2
        assert (x == total).get().all()
        x *= rank
        nccl.reduceScatter(x.data.ptr, part.data.ptr, part.size, lib.NCCL_FLOAT32, lib.NCCL_SUM, stream.ptr)
        assert (part == total * size * (size - 1) / 2).get().all()
        part.fill(rank)
        nccl.allGather(part.data.ptr, x.data.ptr, part.size, lib.NCCL_FLOAT32, stream.ptr)
        assert x.get().tolist() == np.arange(size).repeat(2).tolist()
        nccl.broadcast(x[2:].data.ptr, part.data.ptr, part.size, lib.NCCL_FLOAT32, 0, stream.ptr)
        assert part.get().tolist() == [1, 1]

    def test_messages_of_a_group_pass_each_other(self, cupy, nccl):
        lib, rank, size, stream = cupy.cuda.nccl, nccl.rank_id(), nccl.size(), cupy.cuda.get_current_stream()
        x, y = cupy.full(3, rank, np.int64), cupy.empty(3, np.int64)
        lib.groupStart()
        nccl.send(x.data.ptr, 3, lib.NCCL_INT64, (rank + 1) % size, stream.ptr)
        nccl.recv(y.data.ptr, 3, lib.NCCL_INT64, (rank - 1) % size, stream.ptr)
        lib.groupEnd()
        assert y.get().tolist() == [(rank - 1) % size] * 3

    def test_a_sum_in_bfloat16_is_rounded_once(self, cupy, nccl):
        lib, stream = cupy.cuda.nccl, cupy.cuda.get_current_stream()
        # 256 + 1 is 256 in bfloat16, so that sums of ones, rounded each time, would stay there.
        x = cupy.full(1, 256 if nccl.rank_id() == 0 else 1, ml_dtypes.bfloat16)
        nccl.allReduce(x.data.ptr, x.data.ptr, 1, lib.NCCL_BFLOAT16, lib.NCCL_SUM, stream.ptr)
        assert x.get().tolist() == [ml_dtypes.bfloat16(256 + nccl.size() - 1)]

    def test_a_captured_collective_is_repeated(self, cupy, nccl):
        lib, stream = cupy.cuda.nccl, cupy.cuda.get_current_stream()
        x = cupy.ones(1)
        stream.begin_capture()
        nccl.allReduce(x.data.ptr, x.data.ptr, 1, lib.NCCL_FLOAT64, lib.NCCL_SUM, stream.ptr)
        graph = stream.end_capture()
        assert x.get().tolist() == [1]
        graph.launch()
        graph.launch()
        assert x.get().tolist() == [nccl.size() ** 2]

    def test_a_planted_error_is_found(self, cupy, nccl, monkeypatch):
        nccl.check_async_error()
        monkeypatch.setattr(cupy.emulation, "asynchronous_error", 6)
        with pytest.raises(cupy.cuda.nccl.NcclError, match="remote process exited"):
            nccl.check_async_error()

    def test_memory_of_the_host_is_refused(self, cupy, nccl):
        lib, host = cupy.cuda.nccl, np.ones(1)
        with pytest.raises(RuntimeError, match="IllegalAddress"):
            nccl.allReduce(host.ctypes.data, host.ctypes.data, 1, lib.NCCL_FLOAT64, lib.NCCL_SUM, 0)

    def test_two_ranks_on_one_gpu_are_refused(self, cupy):
        from mpi4py import MPI

        lib, world = cupy.cuda.nccl, MPI.COMM_WORLD
        identifier = world.bcast(lib.get_unique_id())
        with cupy.cuda.Device(0), pytest.raises(lib.NcclError, match="INVALID_USAGE"):
            lib.NcclCommunicator(world.size, identifier, world.rank)
