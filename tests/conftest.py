"""What all tests share: a small corpus and a small run on it, which tests run inside mpiexec, and how ranks start.

Tests marked `@pytest.mark.mpi(min_size=2)` run on every rank of the pool (`tests/distributed/test_under_mpi.py`), or,
if they are also marked `emulated`, under an mpiexec of their own (`tests/gpu/test_under_emulation.py`). Plain `pytest`
leaves them out and runs all others.
"""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest.mock import patch

import isolation
import numpy as np
import pytest
from hosts import Hosts
from hypothesis import settings
from launching import run_to_end
from nodes import SeveralNodes
from small_run import write_settings
from texts import made_up_text

from lucid import kernels
from lucid.distributed import Communicator, choose, device_for
from lucid.distributed.communicators.nccl import NCCLCommunicator
from lucid.distributed.communicators.staged import StagedCommunicator
from lucid.distributed.connection import ProcessGroup, join
from lucid.nn import init
from lucid.preparation import prepare

pytest_plugins = ["rank_pool.fixtures"]

# The same examples every time, however slow the machine is.
settings.register_profile("lucid", derandomize=True, deadline=None, database=None)
settings.load_profile("lucid")

RunRanks = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--passed-into", metavar="FOLDER", help="list the tests that passed in FOLDER/<rank>")
    parser.addoption("--kills", type=int, default=20, help="how often tests/faults/test_kills.py kills a run")
    parser.addoption("--kill-seed", type=int, default=0, help="what draws its victims and moments")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    folder = config.getoption("--passed-into")
    if folder is not None:
        passed = [report.nodeid for report in terminalreporter.getreports("passed")]
        Path(folder, os.environ["PMI_RANK"]).write_text("\n".join(passed))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of the other kind, where pytest-mpi would report each of them as skipped.

    Of what is asked for by another mark, such as `-m long`, tests that need an emulated GPU are left out, too.
    """
    under_mpi, emulated_too = config.getoption("--only-mpi"), "emulated" in config.option.markexpr

    def is_left_out(item: pytest.Item) -> bool:
        is_for_mpi, is_emulated = (item.get_closest_marker(name) is not None for name in ("mpi", "emulated"))
        return is_for_mpi != under_mpi or (is_emulated and not emulated_too)

    left_out = [item for item in items if is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What several tests share is not made in the checkout either."""
    with chdir(tmp_path_factory.mktemp("shared")):
        yield


@pytest.fixture(autouse=True)
def own_surroundings(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test is in an empty folder, and leaves the environment as it found it."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    with isolation.own_surroundings(on_card="card" in map(str, parameters.values())):
        yield


@pytest.fixture(autouse=True)
def own_numbers(request: pytest.FixtureRequest) -> None:
    """Each test draws the same numbers from its module's `RANDOM` in every run, whatever ran before it."""
    generator = getattr(request.module, "RANDOM", None)
    if generator is not None:
        seed = zlib.crc32(request.node.name.encode())
        generator.bit_generator.state = np.random.default_rng(seed).bit_generator.state


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> None:
    """The kernels are compiled, if they were not, before the clock of any test that starts ranks runs."""
    kernels.of(np.zeros(0, np.float32))


@pytest.fixture(scope="session")
def communicator(request: pytest.FixtureRequest) -> Iterator[ProcessGroup]:
    """The communicator of this rank, or of the only process; under mpiexec it is one of MPI's, also for one rank."""
    group = join("mpi" if request.config.getoption("--only-mpi") else "auto")
    yield group
    _close(group, request.session)


def _close(group: ProcessGroup, session: pytest.Session) -> None:
    """Release the memory that ranks share, unless a test has failed, which it may have on this rank only.

    MPI ends at exit, because pytest-mpi uses it for its summary.
    """
    if not session.testsfailed and session.config.getoption("--only-mpi"):
        from mpi4py import MPI

        with patch.object(MPI, "Finalize"):
            group.close()


@pytest.fixture(scope="session")
def shared_memory(communicator: ProcessGroup) -> Communicator:
    """The communicator over shared memory between the ranks of this test."""
    return choose(communicator, "shared_memory")


@pytest.fixture(scope="session")
def several_nodes(communicator: ProcessGroup, request: pytest.FixtureRequest) -> Iterator[Communicator]:
    """The communicator between ranks that act as several nodes."""
    group = SeveralNodes()
    yield choose(group, "shared_memory")
    _close(group, request.session)


@pytest.fixture(scope="session")
def nccl(communicator: ProcessGroup) -> Communicator:
    """The communicator between GPUs; each rank has its own."""
    return NCCLCommunicator(communicator, device_for(communicator, "cuda"))


@pytest.fixture(scope="session")
def staged(shared_memory: Communicator) -> Communicator:
    """The communicator between GPUs through shared memory of the host."""
    return StagedCommunicator(shared_memory, device_for(shared_memory, "cuda"))


@pytest.fixture(scope="session")
def staged_over_mpi(communicator: ProcessGroup) -> Communicator:
    """The communicator between GPUs over MPI."""
    return StagedCommunicator(communicator, device_for(communicator, "cuda"))


class DeviceCounts:
    """What was asked of the emulated GPUs since this process began."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @property
    def host_waits(self) -> int:
        return self._library.stand_in_host_waits()

    @property
    def kernel_launches(self) -> int:
        return self._library.stand_in_kernel_launches()

    @property
    def graph_launches(self) -> int:
        return self._library.stand_in_graph_launches()


@pytest.fixture
def device_counts() -> DeviceCounts:
    """How often the host has waited for a GPU, kernels have been launched, and graphs."""
    if "building" not in sys.modules:
        pytest.skip("a real GPU does not count")
    return DeviceCounts(sys.modules["building"].library())


GROUPS = (
    "alone",
    *(pytest.param(name, marks=pytest.mark.mpi) for name in ("mpi", "shared_memory", "several_nodes")),
    *(pytest.param(name, marks=[pytest.mark.mpi, pytest.mark.emulated]) for name in ("nccl", "staged")),
)


@pytest.fixture(params=GROUPS)
def group(request: pytest.FixtureRequest, communicator: ProcessGroup) -> Communicator:
    """A group of any size. A test that uses it runs in plain `pytest`, and with every backend on several ranks."""
    return communicator if request.param in ("alone", "mpi") else request.getfixturevalue(request.param)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts, joined by a link."""
    hosts = Hosts(tmp_path)
    try:
        try:
            hosts.make()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', None) or error}")
        hosts.join()
        yield hosts
    finally:
        hosts.remove()


@pytest.fixture(scope="session")
def mpiexec() -> str:
    """The path of the launcher that belongs to the MPI of this environment."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        pytest.fail("there is no mpiexec: install lucid[mpich] into this environment")
    return found


@pytest.fixture
def run_ranks(mpiexec: str) -> RunRanks:
    """A function that runs `python ARGUMENTS` on several ranks, and mpiexec `within` a command, if one is given.

    It returns the finished process. All of it is killed, and the test fails, when it takes longer than `seconds`.
    """

    def run(
        ranks: int, *arguments: str, seconds: float = 60, within: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        command = [*within, mpiexec, "-prepend-rank", "-n", str(ranks), sys.executable, *arguments]
        return run_to_end(command, seconds, environment)

    return run


@pytest.fixture
def run_within(run_ranks: RunRanks) -> RunRanks:
    """A function that runs `lucid ARGUMENTS` on several ranks, each in a context: a function at the top of a module."""

    def run(ranks: int, context: Callable[[], Any], *arguments: str, **named: Any) -> subprocess.CompletedProcess[str]:
        name = f"{context.__module__}:{context.__name__}"
        path = os.pathsep.join(filter(None, sys.path))
        return run_ranks(ranks, "-m", "mpi4py", "-m", "within", name, *arguments, PYTHONPATH=path, **named)

    return run


@pytest.fixture(scope="session")
def files_for_ranks() -> list[Path]:
    """The files that can have tests marked `mpi`: to import all of them would take longer than these tests do."""
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    return [path for path in files if re.search(r"mark\.mpi|\bgroup\b", path.read_text(encoding="utf-8"))]


@pytest.fixture
def pass_on_ranks(run_ranks: RunRanks, files_for_ranks: list[Path], tmp_path: Path) -> Callable[..., None]:
    """A function that runs the tests marked `mpi` on some ranks, and fails unless all ran the same, and passed."""

    def run(ranks: int, *options: str, hang_after: int, **settings: Any) -> None:
        finished = run_ranks(
            ranks,
            *("-m", "mpi4py", "-m", "pytest", "-x", "--only-mpi", "-p", "no:cacheprovider", *options),
            # A rank that hangs shows where, and ends; so all end.
            *("-o", f"faulthandler_timeout={hang_after}", "-o", "faulthandler_exit_on_timeout=true"),
            *("--passed-into", str(tmp_path), *map(str, files_for_ranks)),
            **settings,
        )
        assert finished.returncode == 0, finished.stdout
        passed = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert set(passed) == {str(rank) for rank in range(ranks)}, finished.stdout
        assert all(passed.values()), f"a rank ran no test:\n{finished.stdout}"
        assert len(set(passed.values())) == 1, f"the ranks ran different tests:\n{finished.stdout}"

    return run


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 150 documents."""
    path = tmp_path_factory.mktemp("text") / "made_up.txt"
    path.write_text(made_up_text(150, seed=1), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus_folder(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared corpus that tests may read but not alter."""
    folder = tmp_path_factory.mktemp("prepared") / "corpus"
    prepare([text_file], folder, vocab_size=200, held_out=0.1)
    return folder


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the number of weights with each array of them that is drawn."""
    counts: list[int] = []
    quantile = init.normal_quantile

    def counted(numbers: np.ndarray) -> np.ndarray:
        counts.append(numbers.size)
        return quantile(numbers)

    monkeypatch.setattr(init, "normal_quantile", counted)
    return counts


@pytest.fixture
def run_file(corpus_folder: Path, tmp_path: Path) -> Path:
    """The YAML file of a run of 50 steps, with dropout, whose folder is `tmp_path / "run"`."""
    return write_settings(tmp_path / "run.yaml", corpus_folder, tmp_path / "run")
