"""The wheel is the whole tool: these tests install it into an empty environment, and use it far from the checkout.

pip takes the other packages from its configured index, as for the environment of the tests.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
from isolation import REPOSITORY
from texts import made_up_text

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("wheel"), pytest.mark.timeout(600)]

# A few steps of a tiny model on a tiny corpus.
TINY = (
    *("data.path=corpus", "run_folder=run", "model.vocab_size=150", "model.hidden_size=8"),
    *("model.num_attention_heads=2", "model.intermediate_size=16", "train.steps=3", "optimizer.warmup_steps=1"),
    "train.evaluation_samples=8",
)


def build(source, folder, *options):
    """Build distributions from the sources in `source`, and return their paths."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *options]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The wheel and the source distribution of this checkout."""
    wheel, sdist = build(REPOSITORY, tmp_path_factory.mktemp("dist"))
    return wheel, sdist


def names_in(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_contains_the_package_the_recipes_and_the_job_templates(distributions):
    wheel, _ = distributions
    expected = {"lucid/py.typed"}
    for top in ("lucid", "configs", "jobs", "slurm"):
        files = [path for path in (REPOSITORY / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        relative = [path.relative_to(REPOSITORY).as_posix() for path in files if path.name != "site.env"]
        expected |= {name if top == "lucid" else f"lucid/{name}" for name in relative}
    installed = {name for name in names_in(wheel) if name.startswith("lucid/")}
    assert installed == expected
    assert any(name.endswith("/licenses/LICENSE") for name in names_in(wheel))


def test_the_source_distribution_builds_the_same_wheel(distributions, tmp_path):
    wheel, sdist = distributions
    shutil.unpack_archive(sdist, tmp_path)
    (source,) = tmp_path.iterdir()
    (again,) = build(source, tmp_path / "dist", "-t", "wheel")
    assert (again.name, names_in(again)) == (wheel.name, names_in(wheel))
    for name in ("Makefile", "CHANGELOG.md", "docs/architecture.md", "tests/test_wheel.py", "launch/mpirun.sh"):
        assert (source / name).is_file()


class Installation:
    """The wheel in its own environment, used in an empty folder with an empty home."""

    def __init__(self, folder, wheel):
        self.folder = folder / "here"
        self._environment, home = folder / "environment", folder / "home"
        for each in (self.folder, home):
            each.mkdir()
        subprocess.run([sys.executable, "-m", "venv", self._environment], check=True)
        pip = [self.program("python"), "-m", "pip", "install", "--quiet", "--no-compile", f"{wheel}[mpich]"]
        subprocess.run(pip, check=True)
        search = os.pathsep.join([str(self._environment / "bin"), "/usr/bin", "/bin"])
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        self._variables = {"HOME": str(home), "PATH": search, **kept}

    def program(self, name):
        return str(self._environment / "bin" / name)

    def run(self, *command):
        """Run a command of the environment, and return what it printed to standard output."""
        finished = subprocess.run(
            [self.program(command[0]), *map(str, command[1:])],
            cwd=self.folder,
            env=self._variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, f"{command}: {finished.stdout}{finished.stderr}"
        return finished.stdout


def test_the_installed_wheel_prepares_trains_predicts_and_submits(distributions, tmp_path):
    here = Installation(tmp_path, distributions[0])
    assert "small_cpu" in here.run("lucid", "recipes")
    (here.folder / "my.yaml").write_text(here.run("lucid", "recipes", "small_cpu"))
    (here.folder / "text.txt").write_text(made_up_text(30, seed=0))
    here.run("lucid", "prepare", "text.txt", "--output", "corpus", "--vocab-size", 150)
    assert "finished at step 3 of 3" in here.run("lucid", "launch", "-n", 2, "my.yaml", *TINY)
    assert "[MASK] 1:" in here.run("lucid", "predict", "run", "ba co [MASK].")
    here.run("lucid", "recipes", "--slurm", "slurm")
    shutil.copy(here.folder / "slurm" / "site.env.example", here.folder / "slurm" / "site.env")
    submitted = here.run("lucid", "submit", "--dry-run", "my.yaml", "--nodes", 2)
    assert f"LUCID_PYTHON={here.program('python')}" in submitted
    assert submitted.endswith(f"{here.folder}/slurm/pretrain_cpu.sbatch my.yaml\n")
    assert sees_types(here)


def sees_types(here):
    """Return whether a type checker uses the annotations of the installed package."""
    program = "from lucid.launch.limits import available_cores\nreveal_type(available_cores())"
    command = [sys.executable, "-m", "mypy", "--python-executable", here.program("python"), "-c", program]
    finished = subprocess.run(command, cwd=here.folder, capture_output=True, text=True, check=False)
    return re.search(r'Revealed type is "(builtins\.)?int"', finished.stdout) is not None
