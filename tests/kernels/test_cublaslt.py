"""lucid's declarations of cuBLASLt's C interface agree with the header, and the library accepts them.

The wheels of cuBLAS and of the CUDA runtime have the headers, and the library loads without a GPU: only its context,
and what is computed, needs one. The products themselves are tested in `tests/gpu/`.
"""

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in.cublaslt import Library

from lucid.errors import ConfigError
from lucid.kernels.cuda import cublaslt

COMPILER = shutil.which("g++") or shutil.which("clang++")
NUMBERS = {
    "CUBLAS_COMPUTE_32F": cublaslt.COMPUTE_32F,
    "CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE": cublaslt.REDUCTION_IN_COMPUTE_TYPE,
    "CUBLASLT_REDUCTION_SCHEME_MASK": cublaslt.REDUCTION_IN_ANY_TYPE,
    "CUBLAS_STATUS_NOT_SUPPORTED": cublaslt.NOT_SUPPORTED,
    **{{"float32": "CUDA_R_32F", "bfloat16": "CUDA_R_16BF"}[key.name]: n for key, n in cublaslt.DATA_TYPES.items()},
    **{f"CUBLAS_OP_{each.name}": each for each in cublaslt.Operation},
    **{f"CUBLASLT_EPILOGUE_{each.name}": each for each in cublaslt.Epilogue},
    **{f"CUBLASLT_MATMUL_DESC_{each.name}": each for each in cublaslt.MatmulAttribute},
    **{f"CUBLASLT_MATMUL_PREF_{each.name}": each for each in cublaslt.PreferenceAttribute},
}
# Stand-ins for the headers that cublasLt.h includes, which need more of CUDA.
PROLOGUE = """
#include <cstddef>
#include <cstdio>
#define __DRIVER_TYPES_H__
#define CU_COMPLEX_H_
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
struct __half;
struct __nv_bfloat16;
typedef struct CUstream_st *cudaStream_t;
struct cuComplex { float x, y; };
struct cuDoubleComplex { double x, y; };
#include <cublasLt.h>
"""
RESULT = {
    "algo": "algorithm",
    "workspaceSize": "workspace_bytes",
    "state": "state",
    "wavesCount": "waves",
    "reserved": "reserved",
}
# Types of the header that are not pointers.
C_TYPES = {
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "uint64_t": ctypes.c_uint64,
    "int64_t": ctypes.c_int64,
    **dict.fromkeys(("cudaDataType", "cudaDataType_t", "cublasComputeType_t", "cublasStatus_t"), ctypes.c_int),
}


def headers():
    """A folder with cublasLt.h and the headers that it needs."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec and spec.submodule_search_locations) or ():
        folder = Path(root, "cu13", "include")
        if all((folder / name).exists() for name in ("cublasLt.h", "cublas_api.h", "library_types.h")):
            return folder
    return None


HEADERS = headers()
needs_headers = pytest.mark.skipif(HEADERS is None, reason="no headers of cuBLAS: pip install -e '.[gpu-ci]'")


@pytest.fixture(scope="module")
def library():
    try:
        return cublaslt.load(13)
    except ConfigError:
        pytest.skip("cuBLASLt is not installed: pip install -e '.[gpu-ci]'")


@needs_headers
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to read the header with")
def test_constants_and_structures_equal_those_of_the_header(tmp_path):
    result = "cublasLtMatmulHeuristicResult_t"
    expected = [int(number) for number in NUMBERS.values()]
    expected += [ctypes.sizeof(cublaslt.Algorithm), ctypes.sizeof(cublaslt.HeuristicResult)]
    expected += [getattr(cublaslt.HeuristicResult, name).offset for name in RESULT.values()]
    asked = [*NUMBERS, "sizeof(cublasLtMatmulAlgo_t)", f"sizeof({result})"]
    asked += [f"offsetof({result}, {name})" for name in RESULT]
    lines = "\n".join(f'std::printf("%lld\\n", static_cast<long long>({each}));' for each in asked)
    source, program = tmp_path / "numbers.cpp", tmp_path / "numbers"
    source.write_text(f"{PROLOGUE}int main() {{\n{lines}\nreturn 0;\n}}\n")
    subprocess.run([COMPILER, f"-I{HEADERS}", source, "-o", program], check=True, timeout=120)
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60).stdout
    assert dict(zip(asked, map(int, printed.split()), strict=True)) == dict(zip(asked, expected, strict=True))


def declared(name):
    """The return type and the parameters' types of a function in the header, without names and comments."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", (HEADERS / "cublasLt.h").read_text(), flags=re.DOTALL)
    [(returned, arguments)] = re.findall(rf"([\w *]+?)\s*CUBLASWINAPI\s+{name}\s*\(([^)]*)\)", text)
    return returned.strip(), [re.sub(r"(\bconst\b\s*|\s+)", " ", each).strip() for each in arguments.split(",")]


def is_pointer(c_type):
    """Whether a parameter is declared as an address, an object of the library, or a stream."""
    objects = "cublasLtHandle_t", "cublasLtMatmulDesc_t", "cublasLtMatrixLayout_t", "cublasLtMatmulPreference_t"
    return "*" in c_type or "[]" in c_type or c_type.split()[0] in (*objects, "cudaStream_t")


@needs_headers
@pytest.mark.parametrize("name", sorted(cublaslt.FUNCTIONS))
def test_functions_have_the_types_that_the_header_declares(name):
    returned, parameters = declared(name)
    assert returned == "cublasStatus_t"
    types = cublaslt.FUNCTIONS[name]
    assert len(types) == len(parameters)
    for one, parameter in zip(types, parameters, strict=True):
        if is_pointer(parameter):
            assert one is ctypes.c_void_p or issubclass(one, ctypes._Pointer)
        else:
            kind = parameter.split()[0]
            # The others are enumerations.
            assert one is C_TYPES.get(kind, ctypes.c_int), parameter
            assert kind in C_TYPES or kind.startswith("cublasLt"), parameter


def test_the_library_has_a_version_and_reasons(library):
    assert library.version >= 13_00_00
    with pytest.raises(RuntimeError, match=r"cublasLtMatmul ended with status 15 \(.*not supported\) for 2 x 3"):
        library.check(15, "cublasLtMatmul", "2 x 3")


def test_the_library_takes_descriptions_without_a_gpu(library):
    description = library.make("cublasLtMatmulDescCreate", "a test", cublaslt.COMPUTE_32F, 0)
    preference = library.make("cublasLtMatmulPreferenceCreate", "a test")
    values = {
        cublaslt.MatmulAttribute.TRANSA: ctypes.c_int32(cublaslt.Operation.T),
        cublaslt.MatmulAttribute.TRANSB: ctypes.c_int32(cublaslt.Operation.N),
        cublaslt.MatmulAttribute.EPILOGUE: ctypes.c_uint32(cublaslt.Epilogue.BGRADB),
        cublaslt.MatmulAttribute.BIAS_POINTER: ctypes.c_void_p(256),
    }
    for attribute, value in values.items():
        library.set_attribute("cublasLtMatmulDescSetAttribute", "a test", description, attribute, value)
    for attribute in cublaslt.PreferenceAttribute:
        wide = attribute == cublaslt.PreferenceAttribute.MAX_WORKSPACE_BYTES
        value = (ctypes.c_uint64 if wide else ctypes.c_uint32)(256)
        library.set_attribute("cublasLtMatmulPreferenceSetAttribute", "a test", preference, attribute, value)
    library.call("cublasLtMatmulDescDestroy", "a test", description)
    library.call("cublasLtMatmulPreferenceDestroy", "a test", preference)
    for dtype, kind in cublaslt.DATA_TYPES.items():
        layout = library.make("cublasLtMatrixLayoutCreate", dtype, kind, 3, 4, 8)
        library.call("cublasLtMatrixLayoutDestroy", dtype, layout)


def test_a_value_of_the_wrong_size_is_refused(library):
    description = library.make("cublasLtMatmulDescCreate", "a test", cublaslt.COMPUTE_32F, 0)
    with pytest.raises(RuntimeError, match=r"cublasLtMatmulDescSetAttribute ended with status 7 .* for a test"):
        library.set_attribute(
            "cublasLtMatmulDescSetAttribute", "a test", description, cublaslt.MatmulAttribute.TRANSA, ctypes.c_int8(1)
        )
    library.call("cublasLtMatmulDescDestroy", "a test", description)


def test_without_the_library_an_error_says_what_to_install(monkeypatch):
    cublaslt.load.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def missing(path):
        raise OSError(f"{path}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ConfigError, match=r"need cuBLASLt.*libcublasLt.so.12: cannot open.*\[cuda12\]"):
        cublaslt.load(12)


def test_the_library_of_the_wheel_comes_before_the_systems(monkeypatch, tmp_path):
    for folder, name in (("cu13", "libcublasLt.so.13"), ("cublas", "libcublasLt.so.12")):
        (tmp_path / folder / "lib").mkdir(parents=True)
        (tmp_path / folder / "lib" / name).touch()
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(path) or Library())
    cublaslt.load.cache_clear()
    for major in (12, 13, 14):
        cublaslt.load(major)
    cublaslt.load.cache_clear()
    wheels = [str(tmp_path / "cublas/lib/libcublasLt.so.12"), str(tmp_path / "cu13/lib/libcublasLt.so.13")]
    assert loaded == [*wheels, "libcublasLt.so.14"]


def test_the_library_has_the_version_of_cuda_that_cupy_has(monkeypatch):
    runtime = type("runtime", (), {"runtimeGetVersion": staticmethod(lambda: 12090)})
    monkeypatch.setitem(sys.modules, "cupy", type("cupy", (), {"cuda": type("cuda", (), {"runtime": runtime})}))
    monkeypatch.setattr(cublaslt, "load", lambda major: major)
    assert cublaslt.library() == 12
