"""The CUDA kernels compile for every architecture without a GPU, without a warning, and fit into its registers."""

import importlib
import re
import shutil
import struct
import subprocess
import sys

import pytest

from lucid.errors import ConfigError
from lucid.kernels.cuda import compiling

# Kernels that fit into the registers of one mostly fit into those of the others, which only the long tests compile.
ARCHITECTURES = ["sm_90", *(pytest.param(name, marks=pytest.mark.long) for name in ("sm_80", "sm_100"))]
# Elements per access: as many as fit in 16 bytes, or one; and two if the vocabulary is even.
VECTORS = {"float32": [1, 4], "bfloat16": [1, 8]}


# Columns of attention's heads, and whether lines of its scores are whole: BERT's, each number of warps and steps, and
# columns that are none for tensor cores.
HEADS = {
    "float32": [(32, True), (64, True), (64, False), (128, True)],
    "bfloat16": [(24, True), (32, True), (64, True), (64, False), (96, True), (128, True), (5, True)],
}


def forms_of(program):
    """Every form of a program that its Python file can ask for, or every kind of form if their number is unbounded."""
    if program.startswith("attention"):
        form = importlib.import_module("lucid.kernels.cuda.attention").form
        return [form(program, element, *kind) for element, kinds in HEADS.items() for kind in kinds]
    form = importlib.import_module(f"lucid.kernels.cuda.{program}").form
    if program == "sorting":
        return [form()]
    if program in ("casting", "optimizers"):
        return [form(vector) for vector in VECTORS["float32"]]
    if program == "embedding":
        outs = {"float32": ["float32"], "bfloat16": ["float32", "bfloat16"]}
        return [form(element, vector, out) for element, kinds in outs.items() for vector in VECTORS[element]
                for out in kinds]  # fmt: skip
    more = [2] if program == "cross_entropy" else []
    return [form(element, vector) for element, vectors in VECTORS.items() for vector in vectors + more]


FORMS = [form for source in sorted(compiling.SOURCES.glob("*.cu")) for form in forms_of(source.stem)]
[CAST, WIDE_CAST] = forms_of("casting")


def has_nvrtc():
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError):
        return False
    return True


needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="CuPy and NVRTC are not installed: pip install -e '.[gpu-ci]'")


def name_of(form):
    constants = dict(form.constants)
    out = "" if constants.get("OUT_IS_FLOAT", 1) else "-to-bfloat16"
    head = f"-head of {constants['HEAD']}" if "HEAD" in constants else ""
    return f"{form.program}-{form.element}x{form.vector}{out}{head}"


def resources(log):
    """For each kernel in the assembler's report its registers and its spilled bytes."""
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers",
        log,
        re.DOTALL,
    )
    return {name: (int(registers), int(stack) + int(out) + int(back)) for name, stack, out, back, registers in found}


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_a_program_compiles_without_warnings_and_without_spilling_registers(form, architecture):
    cubin, log = compiling.compiled(form, architecture, "--ptxas-options=-v")
    assert cubin.startswith(b"\x7fELF")
    assert len(resources(log)) == form.source.read_text().count('extern "C" __global__') + 4 * (
        form.program == "elementwise"
    )
    assert {name: spilled for name, (_, spilled) in resources(log).items() if spilled} == {}
    assert [line for line in log.splitlines() if not re.match(r"ptxas (info)?\s*[:.]|\s*$", line)] == []


@needs_nvrtc
def test_a_warning_and_a_spill_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "SOURCES", tmp_path)
    source = """
    extern "C" __global__ void __launch_bounds__(1024, 2) wide(float *x) {
        int unused;
        float held[64];
    #pragma unroll
        for (int i = 0; i < 64; ++i) held[i] = x[i * 1024 + threadIdx.x];
        __syncthreads();
    #pragma unroll
        for (int i = 0; i < 64; ++i) x[threadIdx.x * 64 + i] = held[i];
    }
    """
    (tmp_path / "wide.cu").write_text(source)
    _, log = compiling.compiled(compiling.variant("wide", "float32", 1), "sm_90", "--ptxas-options=-v")
    [(_, spilled)] = resources(log).values()
    assert spilled > 0
    assert "warning" in log


@needs_nvrtc
class TestKeeping:
    @pytest.fixture(autouse=True)
    def own_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
        compiling._announce.cache_clear()
        yield
        compiling._announce.cache_clear()

    def test_machine_code_is_compiled_once_and_found_afterwards(self, monkeypatch, capsys, tmp_path):
        first = compiling.machine_code(CAST, "sm_90")
        assert f"compiling kernels, once per machine ({tmp_path}" in capsys.readouterr().err
        monkeypatch.setattr(compiling, "compiled", None)
        assert compiling.machine_code(CAST, "sm_90") == first

    def test_it_is_a_whole_file_for_nvidias_tools(self):
        """The table of program headers, which comes last, ends at the end of the file."""
        cubin = compiling.machine_code(CAST, "sm_90")
        [start], (size, count) = struct.unpack_from("<Q", cubin, 0x20), struct.unpack_from("<HH", cubin, 0x36)
        assert start + size * count == len(cubin)

    def test_each_architecture_form_and_flag_has_its_own(self, monkeypatch, tmp_path):
        compiling.machine_code(CAST, "sm_90")
        compiling.machine_code(CAST, "sm_80")
        compiling.machine_code(WIDE_CAST, "sm_80")
        monkeypatch.setattr(compiling, "_FLAGS", ("-std=c++17",))
        compiling.machine_code(CAST, "sm_80")
        assert len(list(tmp_path.rglob("*.cubin"))) == 4

    def test_a_change_of_any_source_leads_to_a_new_compilation(self, monkeypatch, tmp_path):
        sources = shutil.copytree(compiling.SOURCES, tmp_path / "sources")
        monkeypatch.setattr(compiling, "SOURCES", sources)
        compiling._digest_of_sources.cache_clear()
        compiling.machine_code(CAST, "sm_90")
        with (sources / "element.cuh").open("a") as file:
            file.write("// one more line\n")
        compiling._digest_of_sources.cache_clear()
        compiling.machine_code(CAST, "sm_90")
        monkeypatch.undo()
        compiling._digest_of_sources.cache_clear()
        assert len(list(tmp_path.rglob("*.cubin"))) == 2

    def test_machine_code_that_cannot_be_stored_is_still_used(self, monkeypatch):
        kept = compiling.machine_code(CAST, "sm_90")
        monkeypatch.setattr(compiling, "kernel_folder", lambda digest, sources: None)
        assert compiling.machine_code(CAST, "sm_90") == kept

    def test_one_of_several_processes_compiles(self, tmp_path):
        program = """
from lucid.kernels.cuda import compiling
from lucid.kernels.cuda.casting import form
compiling.machine_code(form(1), "sm_90")
"""
        command = [sys.executable, "-c", program]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
        said = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], said
        assert sum("compiling kernels" in text for text in said) == 1
        assert len(list(tmp_path.rglob("*.cubin"))) == 1

    def test_without_nvrtc_there_is_one_sentence(self, monkeypatch):
        from cupy.cuda import nvrtc

        def fail():
            raise RuntimeError("CuPy failed to load libnvrtc.so.13")

        monkeypatch.setattr(nvrtc, "getVersion", fail)
        with pytest.raises(ConfigError, match=r"need NVRTC.*libnvrtc.so.13.*pip install 'lucid-bert\[cuda13\]'"):
            compiling.machine_code(CAST, "sm_90")

    def test_a_source_that_does_not_compile_is_named_with_what_the_compiler_says(self):
        with pytest.raises(ConfigError, match=r"(?s)casting.cu does not compile for sm_90.*THREADS"):
            compiling.machine_code(compiling.variant("casting", "float32", 1), "sm_90")
