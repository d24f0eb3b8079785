"""Keeps what surrounds the tests out of them: variables of the environment, the home, the folder they are started in.

It is imported before NumPy, Numba and lucid, and cleans the environment then, as these read their numbers of threads
when they are loaded. Processes that tests start inherit the cleaned environment. Those that run pytest again, such as
workers of pytest-xdist, do not clean it a second time.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
EMULATION = Path(__file__).parent / "stand_in"

# Set where the environment is clean: the home of the user, for what needs it.
USER_HOME = "LUCID_TESTS_USER_HOME"
# Which GPUs a scheduler leaves to the tests. It is for those of a card alone.
CARDS = "CUDA_VISIBLE_DEVICES"
# What says where things are on this machine, how packages are had, and what the tests are asked to run on.
KEPT = frozenset(
    (
        *("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD", "TMPDIR", "USER", "LOGNAME", "PYTEST_DEBUG_TEMPROOT", "PY_COLORS"),
        *("LUCID_KERNELS", "EMULATED_GPUS", "EMULATED_STREAMS", "CUDA_HOME", "CUDA_PATH", CARDS),
        *("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
    )
)
KEPT_PREFIXES = ("PIP_",)
LAUNCHERS = ("PMI", "OMPI_", "PRTE_", "MPI_", "HYDRA_", "HYDI_")
# Two workers on two cores would only wait for each other's further threads. Tests of threads ask for some.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def clean_environment() -> None:
    """Leave in `os.environ` what every machine has, and a home that holds the compiled kernels of this one alone."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)
        os.unsetenv(name)  # readline, which pytest imports, sets them for child processes, unseen by `os.environ`
    if USER_HOME in os.environ:
        return
    home, kernels = os.path.expanduser("~"), _kernels_of_the_machine()
    prefixes = KEPT_PREFIXES + (LAUNCHERS if "--only-mpi" in sys.argv else ())
    found = dict(os.environ)
    os.environ.clear()
    os.environ |= {name: value for name, value in found.items() if name in KEPT or name.startswith(prefixes)}
    os.environ |= dict.fromkeys(THREADS, "1")
    os.environ |= {"HOME": _made_home(kernels), USER_HOME: home, "LANG": "C.UTF-8"}
    # Emulated GPUs are in the path from the start of this process, if they are.
    emulation = [str(EMULATION)] if os.path.realpath(EMULATION) in map(os.path.realpath, sys.path) else []
    os.environ["PYTHONPATH"] = os.pathsep.join([*emulation, str(REPOSITORY)])


def clean_signals() -> None:
    """Have child processes start without ignored signals, which a shell in the background or nohup hands on.

    This process goes on as if it ignored them. A handler is not handed on.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)


@contextmanager
def own_surroundings(on_card: bool) -> Iterator[None]:
    """Run a test in an empty folder, and undo what it does to the environment; `on_card`, on those GPUs left to us.

    Which signals are blocked belongs to the environment: child processes inherit it.
    """
    found, folder = dict(os.environ), os.getcwd()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if not on_card:
        os.environ.pop(CARDS, None)
    empty = tempfile.mkdtemp(prefix="lucid-test-")
    os.chdir(empty)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.chdir(folder)
        shutil.rmtree(empty, ignore_errors=True)
        if os.environ != found:
            os.environ.clear()
            os.environ |= found


def _kernels_of_the_machine() -> Path | None:
    """Return the folder in which lucid keeps compiled kernels here, if it can: each suite would take minutes anew."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (os.environ.get("NUMBA_CACHE_DIR"), f"{cache}/lucid"):
        if folder and os.path.isabs(folder):  # not "~", which is all there is to say of a user without a home
            with suppress(OSError):
                os.makedirs(folder, exist_ok=True)
                if os.access(folder, os.W_OK):
                    return Path(folder).absolute()
    return None


def _made_home(kernels: Path | None) -> str:
    home = tempfile.mkdtemp(prefix="lucid-tests-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    Path(home, ".cache").mkdir()
    if kernels is not None:
        Path(home, ".cache", "lucid").symlink_to(kernels)
    return home


clean_signals()
clean_environment()
