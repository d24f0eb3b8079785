"""Law 8: nothing happens on import. Every module of lucid is imported, alone, in a process of its own."""

import subprocess
import sys

PROGRAM = """
import importlib, pathlib, pkgutil, sys, threading
import lucid

assert "numba" not in sys.modules, "import lucid loads what only the first kernel needs"
names = [module.name for module in pkgutil.walk_packages(lucid.__path__, "lucid.")]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)

assert "lucid.distributed.backends.mpi" in sys.modules
loaded = [name for name in ("mpi4py", "mpi4py.MPI", "cupy", "matplotlib", "torch") if name in sys.modules]
assert not loaded, f"import of lucid loads {loaded}"
libraries = pathlib.Path("/proc/self/maps").read_text()
assert "libdnnl" not in libraries, "import of lucid loads oneDNN"
assert "libcublas" not in libraries, "import of lucid loads cuBLAS"
assert threading.active_count() == 1, f"import of lucid starts {threading.enumerate()}"
"""


def test_importing_everything_starts_and_prints_nothing():
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
