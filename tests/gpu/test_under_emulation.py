"""Runs the tests marked `emulated`, of all folders, in processes that have an emulated GPU: in one, and on ranks."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launching import ONE_THREAD, with_emulation

TESTS = Path(__file__).parents[1]
SECONDS = 840

pytestmark = [
    pytest.mark.skipif(
        shutil.which("g++") is None and shutil.which("clang++") is None,
        reason="no C++ compiler to emulate the GPU with",
    ),
    pytest.mark.timeout(SECONDS + 60),
]


# A test that hangs shows where, and ends; so all end.
PYTEST = (
    *("-m", "pytest", "-x", "-m", "emulated", "-p", "no:cacheprovider"),
    *("-o", "faulthandler_timeout=200", "-o", "faulthandler_exit_on_timeout=true"),
)


def test_the_tests_of_one_process_pass():
    process = subprocess.Popen(
        [sys.executable, *PYTEST, "--durations=5", str(TESTS)],
        env=os.environ | ONE_THREAD | with_emulation(),
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"the emulated tests were not done after {SECONDS} s:\n{output}")
    assert process.returncode == 0, output
    assert " passed" in output, output


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_the_tests_of_several_ranks_pass(run_ranks, tmp_path, ranks):
    finished = run_ranks(
        ranks,
        *("-m", "mpi4py", *PYTEST, "--only-mpi", "--passed-into", str(tmp_path), str(TESTS)),
        seconds=SECONDS,
        **with_emulation(EMULATED_GPUS=str(ranks)),
    )
    assert finished.returncode == 0, finished.stdout
    passed = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(passed) == {str(rank) for rank in range(ranks)}, finished.stdout
    assert all(passed.values()), f"a rank ran no test:\n{finished.stdout}"
    assert len(set(passed.values())) == 1, f"the ranks ran different tests:\n{finished.stdout}"
