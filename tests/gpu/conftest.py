"""What runs on a GPU in tests: on a card if there is one, and in the emulation.

A process has either. The emulation is the real CuPy over tests/stand_in. Tests that need it are marked `emulated`;
plain `pytest` leaves them out, but for test_under_emulation.py, which runs them all in a process that has it. Tests
with `machine` run in it and on a card.
"""

import sys
from collections import defaultdict
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from launching import is_stand_in, with_emulation
from stand_in.building import why_no_stand_in
from targets import call

from lucid import backend
from lucid.kernels import cuda, reference
from lucid.kernels.arguments import Dropout, UpdateBuffers
from lucid.kernels.cuda import algorithms, casting, plans
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates

# The spacing of numbers at 1.
SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7}

# The largest errors found on the GPU, by kernel and type of element, in units of the spacing.
_errors = defaultdict(float)
_card = None


def card():
    """The name of the GPU and its driver's CUDA version, or None."""
    try:
        import cupy
    except ImportError:
        return None
    if not cupy.cuda.is_available() or is_stand_in(cupy):
        return None
    version = cupy.cuda.runtime.driverGetVersion()
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    return f"{name}, driver for CUDA {version // 1000}.{version % 1000 // 10}, CuPy {cupy.__version__}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Where there is no card, leave out its tests: all but the first, which says so."""
    left_out = [item for item in items if hasattr(item, "callspec") and item.callspec.params.get("machine") == "card"][
        1:
    ]
    if left_out and card() is None:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_terminal_summary(terminalreporter):
    if not _errors:
        return
    terminalreporter.write_line(f"largest errors on {_card}, as parts of the largest number:")
    for name in sorted({name for name, _ in _errors}):
        found = (f"{kind} {_errors[name, kind] * SPACING[kind]:.1e}" for kind in SPACING if (name, kind) in _errors)
        terminalreporter.write_line(f"  {name:32} {'   '.join(found)}")


@pytest.fixture(autouse=True)
def choices(tmp_path, monkeypatch):
    """A machine that has kept no choice among algorithms, and a process that knows none. Returns the folder for them.

    Those that are kept for the user stay as they are.
    """

    def cache_folder(name, sources):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return folder

    for name, value in (("cache_folder", cache_folder), ("_known", {}), ("_used", {})):
        monkeypatch.setattr(algorithms, name, value)
    plans.plan_of.cache_clear()
    yield tmp_path / "products"
    plans.plan_of.cache_clear()


@pytest.fixture
def cupy():
    found = pytest.importorskip("cupy")
    if not is_stand_in(found):
        pytest.skip("the CuPy here is not over the stand-in")
    return found


class Machine:
    """Runs kernels on copies of NumPy arrays, and returns what they make as NumPy arrays."""

    kernels = cuda
    device = "cuda"

    def __init__(self, kind):
        self.kind = kind

    def get(self, array):
        return backend.to_host(array)

    def put(self, value):
        """Return an array, or an argument of kernels with its arrays, on the device."""
        if isinstance(value, Dropout):
            return replace(value, coordinates=self.put(value.coordinates))
        if isinstance(value, UpdateBuffers):
            return UpdateBuffers(*map(self.put, value))
        if isinstance(value, tuple):
            return tuple(map(self.put, value))
        if isinstance(value, Coordinates):
            return Coordinates(value.seed, self.put(value.counters), self.put(value.positions))
        if isinstance(value, Sequences):
            mask = None if value.mask is None else self.put(value.mask)
            return Sequences(value.bounds, self.put(value.slots), value.length, mask)
        return backend.to_device(value, self.device) if isinstance(value, np.ndarray) else value

    def run(self, name, *arguments, **settings):
        """Run a kernel, all of whose results are new."""
        results = call(cuda if hasattr(cuda, name) else casting, name, *map(self.put, arguments), **settings)
        return tuple(map(backend.to_host, results))

    def update(self, name, arrays, *others, **settings):
        """Run a kernel that updates `arrays` in place, and return what it returns."""
        on_device = [self.put(array) for array in arrays]
        result = getattr(cuda, name)(*on_device, *others, **settings)
        for array, changed in zip(arrays, on_device, strict=True):
            array[...] = backend.to_host(changed)
        return None if result is None else backend.to_host(result)

    def assert_agrees(self, name, *arguments, spacings, least=0.0):
        """Compare a kernel's results with the reference's in double precision, to parts of the largest number in each.

        float32 results may be off by so many spacings of float32, those of rows in bfloat16 by as many of bfloat16.
        Where the largest number is below `least`, it is parts of that.
        """
        kind = next(argument.dtype.name for argument in arguments if isinstance(argument, np.ndarray))
        got = self.run(name, *arguments)
        expected = in_double_precision(name, *arguments)
        for one, other in zip(got, expected, strict=True):
            assert one.shape == other.shape
            assert one.dtype.name in (kind, "float32")
            self.compare(name, kind, one.astype(np.float64), other, spacings[kind], least)
        return got

    def compare(self, name, kind, got, expected, spacings, least=0.0):
        largest = np.abs(expected).max(initial=least) or 1.0
        error = np.abs(got - expected).max(initial=0) / largest / SPACING[kind]
        if self.kind == "card":
            _errors[name, kind] = max(_errors[name, kind], error)
        assert error <= spacings, f"{name} in {kind} is off by {error:.1f} spacings"


def in_double_precision(name, *arguments):
    """Return what the reference makes of the arguments, float32 and bfloat16 taken as float64, as a tuple."""
    are_numbers = (isinstance(each, np.ndarray) and each.dtype.name in SPACING for each in arguments)
    doubled = (each.astype(np.float64) if is_one else each for each, is_one in zip(arguments, are_numbers, strict=True))
    return call(reference, name, *doubled)


@pytest.fixture(scope="session")
def expected():
    """A function that returns what the reference makes of some arguments, in double precision."""
    return in_double_precision


@pytest.fixture(scope="session", params=[pytest.param("emulated", marks=pytest.mark.emulated), "card"])
def machine(request):
    """The GPU or its emulation. New arrays hold no numbers, so that what a kernel leaves unwritten is seen."""
    global _card
    cupy = pytest.importorskip("cupy")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated":
            assert is_stand_in(cupy), "tests marked `emulated` need tests/stand_in first on PYTHONPATH"
            yield Machine("emulated")
            return
        _card = card()
        if _card is None:
            pytest.skip("no GPU that CuPy can use")
        for name in ("empty", "empty_like"):
            patch.setattr(cupy, name, poisoned(getattr(cupy, name)))
        yield Machine("card")


def poisoned(allocate):
    def allocate_poisoned(*arguments, **settings):
        array = allocate(*arguments, **settings)
        if array.dtype.name in ("float64", *SPACING):
            array[...] = np.nan
        return array

    return allocate_poisoned


@pytest.fixture(autouse=True)
def all_done():
    """What a test has left the emulation to do is done before the next: memory that it has left is given out again."""
    yield
    cupy = sys.modules.get("cupy")
    if cupy is not None and is_stand_in(cupy):
        cupy.cuda.Device().synchronize()


@pytest.fixture(autouse=True)
def bounded_arrays(request):
    """In the emulation each array is memory of its own: it holds no numbers, and nothing behind it can be touched."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if parameters.get("machine") != "emulated":
        yield
        return
    import cupy

    with cupy.cuda.using_allocator(None):
        yield


@pytest.fixture(params=["float32", "bfloat16"])
def element(request):
    """The type that rows consist of."""
    return np.dtype({"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[request.param])


@pytest.fixture(params=["emulated", "card"])
def gpu_environment(request):
    """The environment variables of processes that find a GPU: those of the emulation, or None for a card."""
    if request.param == "card":
        if card() is None:
            pytest.skip("no GPU that CuPy can use")
        return None
    if why_no_stand_in():
        pytest.skip(why_no_stand_in())
    return with_emulation()
