"""What surrounds the tests does not reach them: they are run here, and again from surroundings that are hostile."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numba
import numpy as np
import pytest
from isolation import CARDS, EMULATION, KEPT, KEPT_PREFIXES, REPOSITORY, THREADS, USER_HOME
from threadpoolctl import threadpool_info

HOSTILE = {
    "CUDA_VISIBLE_DEVICES": "7",
    "FORCE_COLOR": "1",
    "COLUMNS": "20",
    "HOME": "/dev/null",
    "LANG": "de_DE.UTF-8",
    "LC_ALL": "POSIX",
    "LINES": "5",
    "LUCID_ARBITRARY": "1",
    "MPICH_ASYNC_PROGRESS": "1",
    "NO_COLOR": "1",
    "NUMBA_CACHE_DIR": "/dev/null",
    "NUMBA_DISABLE_JIT": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "PMI_RANK": "1",
    "PMI_SIZE": "4",
    "PYTEST_ADDOPTS": "--maxfail=3",
    "PYTHONPATH": "/nowhere",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_STEP_ID": "0",
    "TERM": "dumb",
    "TTY_COMPATIBLE": "1",
    "UCX_TLS": "nothing",
    "XDG_CACHE_HOME": "/dev/null",
} | dict.fromkeys(THREADS, "3")


def test_a_test_starts_in_an_empty_folder_outside_of_the_checkout():
    assert not Path.cwd().is_relative_to(REPOSITORY)
    assert list(Path.cwd().iterdir()) == []


def test_no_variable_of_the_user_is_left():
    ours = {*THREADS, "HOME", "LANG", "PYTHONPATH", USER_HOME}
    of_libraries = ("KMP_DUPLICATE_LIB_OK", "PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_")
    # Libraries in C set variables for child processes that `os.environ` does not know of, and an installation of Python
    # may set some at its start.
    program = [sys.executable, "-c", "import os; print(*os.environ)"]
    seen, of_python = (
        set(subprocess.run(program, env=environment, capture_output=True, text=True, check=True).stdout.split())
        for environment in (None, {})
    )
    left = {name for name in seen - of_python if not name.startswith((*KEPT_PREFIXES, *of_libraries))}
    assert left <= KEPT - {CARDS} | ours
    assert os.environ["LANG"] == "C.UTF-8"
    assert os.environ["PYTHONPATH"].split(os.pathsep) in ([str(REPOSITORY)], [str(EMULATION), str(REPOSITORY)])


def test_the_home_is_one_of_the_tests_and_leads_to_no_other_but_for_compiled_kernels():
    home = Path(os.environ["HOME"])
    assert home.is_relative_to(tempfile.gettempdir())
    assert {str(path.relative_to(home)) for path in home.rglob("*") if path.is_symlink()} <= {".cache/lucid"}


def test_libraries_have_one_thread():
    np.ones((2, 2)) @ np.ones((2, 2))
    assert {library["num_threads"] for library in threadpool_info()} == {1}
    assert numba.config.NUMBA_NUM_THREADS == 1


def test_a_process_that_a_test_starts_has_the_lucid_of_this_checkout():
    program = "import lucid; print(lucid.__file__)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()) == REPOSITORY / "lucid" / "__init__.py"


def test_a_process_that_a_test_starts_ignores_no_signal_that_asks_for_a_stop():
    program = "import signal; print(*(signal.getsignal(number) for number in (1, 2, 10, 15)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "SIG_IGN" not in found
    assert "default_int_handler" in found


class TestWhatATestLeaves:
    """Either test leaves what the other would find."""

    @pytest.fixture(params=[1, 2])
    def surroundings(self, own_surroundings):
        yield
        os.environ["LEFT_BY_A_TEST"] = "here"
        del os.environ["LANG"]
        Path("left_by_a_test").touch()
        os.chdir("/")

    def test_no_other_finds(self, surroundings):
        assert "LEFT_BY_A_TEST" not in os.environ
        assert os.environ["LANG"] == "C.UTF-8"
        assert not Path("left_by_a_test").exists()


@pytest.mark.parametrize("options", [(), ("-n", "2", "--dist", "loadgroup")], ids=["plain", "two workers"])
def test_all_of_that_holds_in_hostile_surroundings(options, tmp_path):
    for folder in ("runs/small_cpu", "data/python-docs", "lucid"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "junk").write_text("junk")
    # The reference needs no compiled kernels, of which there are none in such a home.
    variables = {name: value for name, value in os.environ.items() if name != USER_HOME}
    variables |= HOSTILE | {"LUCID_KERNELS": "reference"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, __file__]
    # A shell that ignores Ctrl-C and a closing terminal for what it runs in the background, or under nohup.
    command = ["sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh", *command, "-k", "not hostile"]
    finished = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (passed,) = re.findall(r"(\d+) passed", finished.stdout)
    assert int(passed) >= 8
    assert not (tmp_path / "left_by_a_test").exists()


@pytest.mark.xdist_group("one worker")
def test_the_tests_of_a_group_share_a_worker(request):
    """pytest-xdist divides groups by the names of tests, to which it adds the group."""
    assert "PYTEST_XDIST_WORKER" not in os.environ or request.node.nodeid.endswith("@one worker")
