"""Attention by cuDNN, as far as that goes without a GPU: cuDNN has a kernel for each graph, on a described card.

cuDNN takes a description of a card in place of one, but needs a driver to link with: a C++ compiler makes a stub.
"""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from lucid.errors import ConfigError
from lucid.kernels.cuda import cudnn_attention
from lucid.kernels.sequences import Sequences
from lucid.random import Coordinates

# The package has the function by this name.
attention = importlib.import_module("lucid.kernels.cuda.attention")

COMPILER = shutil.which("g++") or shutil.which("clang++")

needs_cudnn = pytest.mark.skipif(
    importlib.util.find_spec("cudnn") is None or COMPILER is None,
    reason="no C++ compiler, or cuDNN's front end is not installed: pip install -e '.[gpu-ci]'",
)

# An H100, in the names that cuDNN's own description of a card has.
HOPPER = {
    "cudaDeviceId": 0,
    "deviceName": "NVIDIA H100 80GB HBM3",
    "deviceVer": 900,
    "driverVer": 13_000,
    "multiProcessorCount": 132,
    "smCountOrigin": 0,
    "warpSize": 32,
    "regsPerBlock": 65_536,
    "maxGridSize": [2**31 - 1, 65_535, 65_535],
    "maxBlockSize": [1024, 1024, 64],
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerSM": 2048,
    "maxCtasPerSM": 32,
    "maxRegistersPerSM": 65_536,
    "l2CacheSize": 52_428_800,
    "maxSharedMemoryPerBlock": 49_152,
    "maxSharedMemoryPerBlockOptin": 232_448,
    "oversizedSharedMemoryPerBlock": 0,
    "reservedSharedMemoryPerBlock": 1024,
    "totalGlobalMem": 85_899_345_920,
    "smClockRateKHz": 1_980_000,
    "memClockRateKHz": 2_619_000,
    "memoryBusWidth": 5120,
    "pciDeviceId": 0,
    "isTccDriver": 0,
    "supportCoopLaunch": 1,
}
# What cuDNN looks up in the driver, which does nothing here.
DRIVER = """
    cuCtxGetCurrent cuCtxGetLimit cuCtxPopCurrent cuCtxPushCurrent cuGetErrorName cuGetErrorString cuKernelGetAttribute
    cuKernelGetFunction cuKernelSetAttribute cuLaunchCooperativeKernel cuLaunchKernel cuLaunchKernelEx
    cuLibraryGetKernel cuLibraryLoadData cuLibraryLoadFromFile cuLibraryUnload cuLinkAddData cuLinkComplete
    cuLinkCreate cuLinkDestroy cuModuleGetFunction cuModuleLoadData cuModuleUnload
    cuOccupancyMaxPotentialClusterSize cuStreamGetCtx cuTensorMapEncodeIm2col cuTensorMapEncodeTiled
"""
PROGRAM = """
import json, sys
import cudnn
from lucid.kernels.cuda import cudnn_attention
description, shape = map(json.loads, sys.argv[1:])
where = {"device_property": cudnn.create_device_properties(json.dumps(description)), "sm_version": 90, "sm_count": 132}
for make in (cudnn_attention.forward_graph, cudnn_attention.backward_graph):
    make(*shape, **where)
print("supported")
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A folder with a library that is found in the driver's place."""
    folder = tmp_path_factory.mktemp("driver")
    source = "".join(f'extern "C" int {name}(...) {{ return 0; }}\n' for name in DRIVER.split())
    for name, value in (("cuDriverGetVersion", 13_000), ("cuDeviceGetCount", 1), ("cuDeviceGet", 0)):
        source += f'extern "C" int {name}(int *value, ...) {{ *value = {value}; return 0; }}\n'
    (folder / "driver.cpp").write_text(source)
    command = [COMPILER, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "driver.cpp", "-o", "libcuda.so.1"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@needs_cudnn
@pytest.mark.parametrize("shape", [(256, 128, 12, 64), (32, 512, 12, 64), (57, 512, 16, 64), (8, 128, 4, 32)])
def test_cudnn_has_kernels_for_sequences_of_any_length_side_by_side(driver, shape):
    environment = os.environ | {"LD_LIBRARY_PATH": str(driver), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PROGRAM, json.dumps(HOPPER), json.dumps(shape)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.stdout == "supported\n", finished.stdout + finished.stderr[-4000:]


class TestChoice:
    @pytest.fixture(autouse=True)
    def own_kind(self, monkeypatch):
        monkeypatch.setattr(attention, "_kind", "own")

    def test_without_cudnn_asking_for_it_is_an_error_and_auto_says_what_is_used(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cudnn", None)
        monkeypatch.setattr(cudnn_attention, "_device", lambda: 0)
        with pytest.raises(ConfigError, match=r"needs cuDNN and its front end.*pip install -e '\.\[cuda13\]'"):
            attention.choose("cudnn")
        assert attention.choose("own") is None
        assert "lucid's own kernels" in attention.choose("auto")
        assert attention._kind == "own"

    def test_a_cudnn_that_fails_on_empty_sequences_is_not_taken(self, monkeypatch):
        """Micro-batches are filled up with empty sequences."""
        cudnn = SimpleNamespace(backend_version=lambda: 92_201, create_handle=object)
        monkeypatch.setitem(sys.modules, "cudnn", cudnn)
        monkeypatch.setattr(cudnn_attention, "_device", lambda: 0)
        monkeypatch.setattr(cudnn_attention, "_handle", lambda device: object())
        with pytest.raises(ConfigError, match=r"needs cuDNN 9\.25\.0 or later, and this is 9\.22\.1: pip install"):
            attention.choose("cudnn")
        assert "lucid's own kernels" in attention.choose("auto")
        cudnn.backend_version = lambda: 92_500
        assert attention.choose("cudnn") is None

    def test_auto_takes_cudnn_where_it_can_and_nothing_is_dropped(self, monkeypatch):
        monkeypatch.setattr(cudnn_attention, "load", lambda: None)
        assert attention.choose("auto") is None
        sequences = Sequences.padded(np.zeros((2, 4)), None)
        rows = np.zeros((8, 3 * 32), ml_dtypes.bfloat16)
        coordinates = sequences.coordinates(Coordinates.of(0, 0, np.arange(2)))
        assert attention._is_for_cudnn(rows, sequences, 2, None)
        assert not attention._is_for_cudnn(rows, sequences, 2, coordinates)
        assert not attention._is_for_cudnn(rows.astype(np.float32), sequences, 2, None)
        assert not attention._is_for_cudnn(rows, sequences, 8, None)
        mask = np.arange(4) != np.array([[0], [9]])
        assert not attention._is_for_cudnn(rows, Sequences.unpadded(mask, mask), 2, None)

    def test_cudnn_asked_for_refuses_to_drop(self, monkeypatch):
        monkeypatch.setattr(cudnn_attention, "load", lambda: None)
        attention.choose("cudnn")
        sequences = Sequences.padded(np.zeros((2, 4)), None)
        settings = sequences, 2, 0.1, 1 << 16, sequences.coordinates(Coordinates.of(0, 0, np.arange(2)))
        with pytest.raises(ConfigError, match=r"train.attention is cudnn, which takes bfloat16.*no dropout"):
            attention.attention(np.zeros((8, 3 * 32), ml_dtypes.bfloat16), *settings)
