"""Measures what the tests are worth: plants a fault in a copy of the sources, and runs the tests that have to fail.

Each patch beside this file is one fault. Its first line says what the fault does; the line `Caught by:` names a test,
or a file of tests, of `make test`. All patches of a process use one copy, since compiled kernels are kept by the path
of their source. The copy has a home of its own, so that kernels of faulty sources do not stay in the user's.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from launching import run_to_end

REPOSITORY = Path(__file__).parents[2]
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "data", "models", "planted")
# pytest's exit code where tests ran and one failed.
TESTS_FAILED = 1

SECONDS = 900
pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 60)]


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that is tested, and of the tests."""
    folder = tmp_path_factory.mktemp("planted") / "lucid"
    shutil.copytree(REPOSITORY, folder, ignore=NOT_COPIED)
    # `data` and `models` are packages of lucid, too, and folders of tests.
    for part in ("lucid", "tests"):
        for name in ("data", "models"):
            shutil.copytree(REPOSITORY / part / name, folder / part / name, ignore=NOT_COPIED)
    return folder


@pytest.fixture
def plant(copy: Path):
    """A function that applies a patch to the copy. Afterwards the files are what they were, their times included."""
    changed: list[str] = []

    def apply(patch: Path) -> None:
        listed = subprocess.run(["git", "apply", "--numstat", patch], capture_output=True, text=True, check=True)
        changed.extend(line.split("\t")[2] for line in listed.stdout.splitlines())
        subprocess.run(["git", "apply", patch], cwd=copy, check=True, env=os.environ | {"GIT_DIR": os.devnull})

    yield apply
    for name in changed:
        shutil.copy2(REPOSITORY / name, copy / name)


def run_in(copy: Path, *tests: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the copy, up to the first that fails."""
    variables = {"PYTHONPATH": str(copy), "HOME": str(copy.parent / "home")}
    with chdir(copy):
        return run_to_end([sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests], SECONDS, variables)


def name_of_test(patch: Path) -> str:
    (name,) = re.findall("^Caught by: (.*)$", patch.read_text(), re.MULTILINE)
    return name


def test_without_a_fault_tests_of_every_folder_pass_in_the_copy(copy: Path) -> None:
    """All of them pass in the checkout. That the copy has what a folder of tests needs, one of them shows."""
    by_folder = {
        Path(name.partition("::")[0]).parent: name for name in sorted(map(name_of_test, PATCHES), reverse=True)
    }
    finished = run_in(copy, *by_folder.values())
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_a_planted_fault_is_caught(patch: Path, copy: Path, plant) -> None:
    plant(patch)
    finished = run_in(copy, name_of_test(patch))
    assert finished.returncode == TESTS_FAILED, finished.stdout
    assert "\nFAILED " in finished.stdout, finished.stdout  # rather than a fixture that could not be made


def test_there_are_faults_in_every_package() -> None:
    """A package whose faults nobody plants is one whose tests nobody measures."""
    touched = {
        line.split("/")[2]
        for patch in PATCHES
        for line in patch.read_text().splitlines()
        if line.startswith("+++ b/lucid/")
    }
    packages = {path.name for path in (REPOSITORY / "lucid").iterdir() if (path / "__init__.py").exists()}
    assert packages <= touched
