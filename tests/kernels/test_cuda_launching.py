"""The launch of kernels through CuPy, whose module and device are replaced here. Nothing here needs a GPU."""

from types import SimpleNamespace

import numpy as np
import pytest

from lucid.errors import ConfigError
from lucid.kernels.cuda import launching
from lucid.kernels.cuda.compiling import variant

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install -e '.[gpu-ci]'")

FORM = variant("casting", "float32", 1)


@pytest.fixture
def launched(monkeypatch):
    """The calls to CuPy, on card number 1 with architecture sm_90."""
    calls = []

    class Module:
        def load(self, cubin):
            calls.append(("load", cubin))

        def get_function(self, name):
            return lambda *arguments: calls.append((name, *arguments))

    monkeypatch.setattr(cupy.cuda.function, "Module", Module)
    monkeypatch.setattr(cupy.cuda, "Device", lambda: SimpleNamespace(id=1, compute_capability="90"))
    monkeypatch.setattr(launching, "machine_code", lambda form, architecture: f"{form.program} for {architecture}")
    launching._function.cache_clear()
    launching._module.cache_clear()
    yield calls
    launching._function.cache_clear()
    launching._module.cache_clear()


def test_a_program_is_loaded_once_for_the_architecture_of_the_card(launched):
    for _ in range(2):
        launching.launch(FORM, "kernel", (3, 2), (32,), np.int64(5))
    assert launched == [("load", "casting for sm_90"), *[("kernel", (3, 2), (32,), (np.int64(5),))] * 2]


def test_no_array_is_a_null_pointer(launched):
    launching.launch(FORM, "kernel", (1,), (32,), None)
    [_, (_, _, _, [argument])] = launched
    # CuPy would take None for a parameter that lies at address 0.
    assert isinstance(argument, np.uint64)
    assert argument == 0


def test_an_empty_grid_starts_nothing(launched):
    launching.launch(FORM, "kernel", (0, 2), (32,))
    assert launched == []


def test_machine_code_that_cannot_be_loaded_is_an_error_that_says_what_to_do(launched, monkeypatch):
    class RefusedError(Exception):
        pass

    def load(module, cubin):
        raise RefusedError("invalid image")

    monkeypatch.setattr(cupy.cuda.driver, "CUDADriverError", RefusedError)
    monkeypatch.setattr(cupy.cuda.function.Module, "load", load)
    with pytest.raises(ConfigError, match=r"casting kernels cannot be loaded \(invalid image\): delete the folder"):
        launching.launch(FORM, "kernel", (1,), (32,))
