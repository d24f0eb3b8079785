"""Runs the tests marked `emulated`, of all folders, in processes that have an emulated GPU: in one, and on ranks.

Other numbers of ranks, which add little to two, are left to the long tests.
"""

import shutil
import sys
from pathlib import Path

import pytest
from launching import run_to_end, with_emulation

TESTS = Path(__file__).parents[1]
KERNELS = Path(__file__).parent / "test_kernels.py"
SECONDS, HANG_AFTER = 840, 200

pytestmark = [
    pytest.mark.skipif(
        shutil.which("g++") is None and shutil.which("clang++") is None,
        reason="no C++ compiler to emulate the GPU with",
    ),
    pytest.mark.timeout(SECONDS + 60),
]


@pytest.mark.parametrize(
    "tests", [(str(KERNELS),), (str(TESTS), f"--ignore={KERNELS}")], ids=["of kernels", "all others"]
)
def test_the_tests_of_one_process_pass(tests):
    options = ("-m", "emulated", "-p", "no:cacheprovider", "--durations=5")
    # A test that hangs shows where.
    hanging = ("-o", f"faulthandler_timeout={HANG_AFTER}", "-o", "faulthandler_exit_on_timeout=true")
    command = [sys.executable, "-m", "pytest", "-x", *options, *hanging, *tests]
    finished = run_to_end(command, SECONDS, with_emulation())
    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout, finished.stdout


@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.long) for ranks in (1, 3, 4))])
def test_the_tests_of_several_ranks_pass(pass_on_ranks, ranks):
    emulation = with_emulation(EMULATED_GPUS=str(ranks))
    pass_on_ranks(ranks, "-m", "emulated", hang_after=HANG_AFTER, seconds=SECONDS, **emulation)
