"""Invariant 8: nothing happens on import; and frequent starts load no library that they do not need.

Every module of lucid is imported, alone, in a process of its own.
"""

import subprocess
import sys

import pytest

import lucid
import lucid.training
from lucid.cli import commands

PROGRAM = """
import importlib, pathlib, pkgutil, sys, threading
import lucid

names = [module.name for module in pkgutil.walk_packages(lucid.__path__, "lucid.")]
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)

assert "lucid.distributed.communicators.mpi" in sys.modules
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


# Whatever takes more time to load than the rest of a start together.
SLOW = {"numpy", "scipy.linalg", "scipy.special", "numba", "pydantic", "rich", "tokenizers", "typer", "mpi4py"}
COMPILED = {"numba", "scipy.linalg", "scipy.special"}
COMMAND = "from lucid.cli import main\ntry: main([{}])\nexcept SystemExit as leaving: assert leaving.code == 0"


@pytest.mark.parametrize(
    ("program", "needed"),
    [
        ("import lucid", set()),
        ("import lucid.distributed", set()),
        ("import lucid.launch.rank_parent", set()),
        (COMMAND.format("'launch', '--help'"), set()),
        ("from lucid.distributed import announced; announced()", set()),
        ("import lucid; lucid.Tensor; lucid.nn; lucid.models", {"numpy", "pydantic"}),
        ("import lucid; lucid.distributed.connect(); lucid.distributed.DistributedDataParallel", {"numpy"}),
        (
            "import numpy; from lucid import kernels; kernels.of(numpy.zeros(0, 'f4')).adamw",
            {"numpy", "numba"},
        ),
        ("import lucid.cli.doctor, lucid.cli.train", SLOW - COMPILED - {"mpi4py"}),
        (COMMAND.format("'--version'"), {"typer"}),
        (COMMAND.format("'--help'"), {"typer", "rich"}),
    ],
)
def test_a_start_loads_only_what_it_needs(program, needed):
    assert slow_modules(program) <= needed


def test_a_plan_settings_and_the_doctor_need_no_compiled_kernels(run_file, tmp_path):
    for arguments in (
        f"'plan', '{run_file}'",
        f"'train', '{run_file}', '--print-config'",
        f"'doctor', '--folder', '{tmp_path}'",
    ):
        assert not slow_modules(COMMAND.format(arguments)) & (COMPILED | {"mpi4py"})


def slow_modules(program):
    """Which of `SLOW` a Python program has loaded at its end."""
    program += f"\nimport sys\nprint(*({SLOW!r} & sys.modules.keys()), file=sys.stderr)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stderr.split())


@pytest.mark.parametrize(
    "package",
    [lucid, lucid.distributed, lucid.training, lucid.nn, lucid.optim, lucid.models],
    ids=lambda package: package.__name__,
)
def test_every_name_that_a_package_lists_can_be_used(package):
    assert package.__all__
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))


def test_a_name_that_a_package_does_not_have_is_the_usual_error():
    with pytest.raises(AttributeError, match="lucid has no 'tensors': did you mean tensor or Tensor"):
        lucid.tensors  # noqa: B018
    with pytest.raises(AttributeError, match=r"lucid.optim has no 'SGD': it has AdamW, LAMB"):
        lucid.optim.SGD  # noqa: B018
    with pytest.raises(AttributeError, match=r"lucid.nn has no 'LayerNrm': did you mean LayerNorm\?"):
        lucid.nn.LayerNrm  # noqa: B018
    with pytest.raises(AttributeError, match=r"Linear has no 'wieght': did you mean weight\?"):
        lucid.nn.Linear(1, 1).wieght  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'conect'"):
        from lucid.distributed import conect  # noqa: F401


@pytest.mark.parametrize("name", [name for name in commands.COMMANDS if name != "launch"])
def test_the_help_of_all_commands_begins_as_that_of_each(name):
    paragraph = commands.load(name).help.split("\n\n")[0]
    assert " ".join(paragraph.split()) == commands.COMMANDS[name]
