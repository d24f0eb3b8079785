"""NVIDIA's compute-sanitizer finds nothing wrong with the kernels: what only a card can show, and a test cannot.

It runs a few of the other tests, in processes whose CuPy keeps no memory, so that every array has bounds of its own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SECONDS = 280
FAILED = 99

# Kernels in float32 and bfloat16, with dropout, rows of several blocks, sequences of several pieces; then whole steps.
KERNELS = (str(HERE / "kernels"), "-k", "card and (second_run or forward_and_backward)")
STEPS = (str(HERE / "test_emulated_model.py"), "-k", "card")
PYTEST = (
    "import sys, cupy, pytest; cupy.cuda.set_allocator(None); "
    "sys.exit(pytest.main(['-x', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
)


def sanitizer() -> str | None:
    """The path of compute-sanitizer: on the PATH, or where CUDA or its wheel, nvidia-cuda-sanitizer-api, is."""
    spec = importlib.util.find_spec("nvidia")
    wheels = [home for root in (spec and spec.submodule_search_locations) or () for home in Path(root).glob("cu*")]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", *wheels]
    folders = [os.environ.get("PATH", ""), *(f"{home}/bin" for home in homes if home)]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


# Memory that is not theirs, and memory that nobody has written: in whole steps those of cuBLASLt as well, which is not
# looked at for races.
@pytest.mark.parametrize("machine", ["card"], indirect=True)
@pytest.mark.parametrize(
    ("tool", "tests"),
    [("memcheck", KERNELS), ("memcheck", STEPS), ("racecheck", KERNELS), ("synccheck", KERNELS)],
    ids=["memcheck of kernels", "memcheck of steps", "racecheck of kernels", "synccheck of kernels"],
)
@pytest.mark.timeout(SECONDS + 20)
def test_nothing_is_found(machine, tool, tests):
    path = sanitizer()
    if path is None:
        pytest.skip("there is no compute-sanitizer on the PATH, in CUDA_HOME or as a wheel")
    command = [path, "--tool", tool, "--error-exitcode", str(FAILED), "--target-processes", "all", sys.executable]
    finished = subprocess.run(
        [*command, "-c", PYTEST, *tests],
        cwd=HERE.parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert finished.returncode == 0, finished.stdout[-5000:]
    assert " passed" in finished.stdout
