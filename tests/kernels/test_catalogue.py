"""An implementation has the catalogue's kernels, each with the catalogue's signature: what invariant 4 rests on."""

import inspect
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from lucid import kernels
from lucid.errors import ConfigError
from lucid.kernels import Kernels, cpu, cuda, reference

CATALOGUE = {name: function for name, function in inspect.getmembers(Kernels, inspect.isfunction) if name[0] != "_"}


@pytest.mark.parametrize("implementation", [reference, cpu, cuda], ids=["reference", "cpu", "cuda"])
@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_an_implementation_has_the_signature_of_the_catalogue(name, implementation):
    expected = inspect.signature(CATALOGUE[name]).parameters
    got = inspect.signature(getattr(implementation, name)).parameters
    assert list(got) == list(expected)[1:]
    for parameter in got.values():
        assert (parameter.kind, parameter.default) == (expected[parameter.name].kind, expected[parameter.name].default)


def test_every_kernel_is_documented():
    assert all(function.__doc__ for function in CATALOGUE.values())


@pytest.mark.parametrize("implementation", [reference, cpu, cuda], ids=["reference", "cpu", "cuda"])
def test_an_implementation_has_no_kernel_of_its_own(implementation):
    own = {name for name, function in inspect.getmembers(implementation, inspect.isfunction) if name != "load"}
    assert own == CATALOGUE.keys()


class TestChoice:
    """The choice of kernels for an array. A process chooses once, so each test forgets the choice first."""

    @pytest.fixture(autouse=True)
    def forgotten_choice(self, monkeypatch):
        monkeypatch.delenv("LUCID_KERNELS", raising=False)
        kernels._on_cpu.cache_clear()
        kernels._on_gpu.cache_clear()
        yield
        kernels._on_cpu.cache_clear()
        kernels._on_gpu.cache_clear()

    def test_float32_gets_the_compiled_kernels(self):
        assert kernels.of(np.zeros(1, np.float32)) is cpu

    def test_float64_gets_the_reference(self):
        assert kernels.of(np.zeros(1)) is reference

    @pytest.mark.parametrize(("dtype", "expected"), [("float32", cuda), ("bfloat16", cuda), ("float64", reference)])
    def test_arrays_on_a_gpu_get_the_cuda_kernels_in_float32_and_bfloat16(self, monkeypatch, dtype, expected):
        class OnGPU:
            dtype: np.dtype

        array = OnGPU()
        array.dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=OnGPU))
        assert kernels.of(array) is expected
        kernels._on_gpu.cache_clear()
        monkeypatch.setenv("LUCID_KERNELS", "reference")
        assert kernels.of(array) is reference

    def test_the_environment_can_select_the_reference(self, monkeypatch):
        monkeypatch.setenv("LUCID_KERNELS", "reference")
        assert kernels.of(np.zeros(1, np.float32)) is reference

    def test_an_unknown_word_in_the_environment_is_refused(self, monkeypatch):
        monkeypatch.setenv("LUCID_KERNELS", "fast")
        with pytest.raises(ConfigError, match="'fast'; it takes 'reference'"):
            kernels.of(np.zeros(1, np.float32))

    def test_without_numba_there_is_an_error_and_no_silent_fall_back(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "lucid.kernels.cpu")
        monkeypatch.delattr(kernels, "cpu")
        monkeypatch.setitem(sys.modules, "numba", None)
        for name in [name for name in sys.modules if name.startswith("lucid.kernels.cpu.")]:
            monkeypatch.delitem(sys.modules, name)
        with pytest.raises(ConfigError, match=r"Numba, which cannot be loaded.*LUCID_KERNELS=reference"):
            kernels.of(np.zeros(1, np.float32))


def test_squares_are_summed_in_double_precision_block_by_block():
    values = np.random.default_rng(0).standard_normal(200_001).astype(np.float32)
    bounds = np.array([0, 7, 65_543, 200_001])
    expected = [sum(float(value) ** 2 for value in block) for block in np.split(values, bounds[1:-1])]
    assert reference.squared_sums(values, bounds) == pytest.approx(expected, rel=1e-12)
