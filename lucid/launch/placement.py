"""Which cores and which GPU of its host a rank gets. `rank_parent` places a rank before it starts.

The ranks of a host get equal blocks of its cores, one NUMA domain after the other. As many ranks as cores get a core
each, and as many ranks as domains a domain each. With GPUs each rank gets one GPU, and a part of the cores near it, as
if every GPU had a rank: so two runs on different GPUs never share a core.
"""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lucid.errors import LaunchError
from lucid.launch.limits import ROOT, allowed_cpus, available_cores, numbers_in, physical_cores
from lucid.launch.processes import ancestors_of_rank
from lucid.launch.rank_status import lent_descriptor

T = TypeVar("T")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# MPICH waits busily. Ranks that share a core then wait for each other's time slices, and run 3 to 5 times slower.
YIELD_VARIABLE = "MPIR_CVAR_ENABLE_HEAVY_YIELD"


@dataclass(frozen=True)
class GPU:
    """A GPU by its name in CUDA_VISIBLE_DEVICES, and the hardware threads near it (none: not known)."""

    name: str
    cpus: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Machine:
    """The cores and GPUs of a host that a process may use. A core is the set of its hardware threads."""

    cores: tuple[frozenset[int], ...]
    gpus: tuple[GPU, ...]

    @classmethod
    def read(cls, allowed: frozenset[int], visible: str | None, root: Path = ROOT) -> "Machine":
        """Read the files of the kernel below `root`.

        `allowed` is the affinity mask (hardware threads), `visible` the value of CUDA_VISIBLE_DEVICES.
        """
        gpus = _gpus(root)
        if visible is not None:
            gpus = [_named(name.strip(), gpus) for name in visible.split(",") if name.strip()]
        return cls(physical_cores(allowed, root), tuple(gpus))

    def cores_of(self, rank: int, ranks: int) -> frozenset[int]:
        """Return the hardware threads for rank `rank` of the `ranks` on this host."""
        return frozenset().union(*_share(self.cores, rank, ranks))

    def cores_near(self, gpu: GPU) -> frozenset[int]:
        """Return the hardware threads for the rank on `gpu`: its part of the cores near it, or else of all cores."""
        near = [core for core in self.cores if core & gpu.cpus]
        neighbours = [other for other in self.gpus if other.cpus == gpu.cpus]
        return frozenset().union(*_share(near or self.cores, neighbours.index(gpu), len(neighbours)))


# The variables of MPICH's launcher and of Open MPI's: a rank's number among those of its host, and how many these are.
_LOCAL_RANKS = (
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)


@dataclass(frozen=True)
class LocalRank:
    """The number of a rank among those of its host, and whether its launcher gives each its own resources."""

    rank: int
    ranks: int
    has_its_own: bool

    @classmethod
    def announced(cls, environment: Mapping[str, str]) -> "LocalRank":
        """Return what MPICH's launcher, Open MPI's, or srun announces; without a launcher, rank 0 of 1."""
        for rank, ranks in _LOCAL_RANKS:
            if rank in environment and ranks in environment:
                return cls(int(environment[rank]), int(environment[ranks]), has_its_own=False)
        if "SLURM_STEP_ID" in environment and "SLURM_LOCALID" in environment:
            # srun does not announce the number of tasks on this host. It binds them itself, so it is not needed.
            return cls(int(environment["SLURM_LOCALID"]), 0, has_its_own=True)
        return cls(0, 1, has_its_own=False)


def place(environment: MutableMapping[str, str], bind: bool, with_gpus: bool) -> None:
    """Bind this process to the cores of its rank (`bind`), or choose the rank's GPU and cores near it (`with_gpus`).

    The number of threads and the GPU are written to `environment`, for the program that the process starts with it.
    Raises `LaunchError` if the host has too few GPUs.
    """
    local = LocalRank.announced(environment)
    machine = Machine.read(allowed_cpus(), environment.get("CUDA_VISIBLE_DEVICES"))
    cores: frozenset[int] = frozenset()
    if with_gpus:
        gpu = _gpu_of(local, machine.gpus)
        # A scheduler may have given numbers, which are in this order.
        environment.update({"CUDA_VISIBLE_DEVICES": gpu.name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
        cores = machine.cores_near(gpu)
    elif bind:
        cores = machine.cores_of(local.rank, local.ranks)
    if cores and not local.has_its_own:
        os.sched_setaffinity(0, cores)
        _limit_threads(environment, sum(bool(core & cores) for core in machine.cores))


def take_share(environment: MutableMapping[str, str]) -> None:
    """Give a rank that mpiexec started without `lucid launch` the cores and threads that `lucid launch` would give it.

    Call it before any library reads the number of threads from `environment`. It changes nothing for a process that has
    no launcher, that a `rank_parent` has placed, or that its launcher has bound, as srun does.
    """
    local = LocalRank.announced(environment)
    if local.ranks < 2 or lent_descriptor() is not None or _is_bound():
        return
    cores = available_cores()
    threads = _threads(environment.get("OMP_NUM_THREADS", "")) or max(1, cores // local.ranks)
    environment.update({name: str(_threads(environment.get(name, "")) or threads) for name in THREAD_VARIABLES})
    if local.ranks > cores:
        environment.setdefault(YIELD_VARIABLE, "1")
    if local.ranks * threads == cores:
        place(environment, bind=True, with_gpus=False)


def _is_bound() -> bool:
    """Return whether the launcher has bound this process. Launchers bind ranks, but not themselves."""
    try:
        return os.sched_getaffinity(0) != os.sched_getaffinity(ancestors_of_rank()[-1].number)
    except (AttributeError, IndexError, OSError):
        return True  # not known


def _gpu_of(local: LocalRank, gpus: Sequence[GPU]) -> GPU:
    if local.has_its_own and len(gpus) == 1:
        return gpus[0]
    ranks = max(local.ranks, local.rank + 1)
    if ranks > len(gpus):
        usable = f"{len(gpus) or 'no'} usable GPU{'s' * (len(gpus) != 1)}"
        way_out = f"start at most {len(gpus)} on a host (-n), or leave out --gpus" if gpus else "leave out --gpus"
        raise LaunchError(
            f"{os.uname().nodename} has {usable} for {ranks} rank{'s' * (ranks != 1)}, which need one each: {way_out}"
        )
    return gpus[local.rank]


def _limit_threads(environment: MutableMapping[str, str], cores: int) -> None:
    for variable in THREAD_VARIABLES:
        environment[variable] = str(min(_threads(environment.get(variable, "")) or cores, cores))


def _threads(given: str) -> int:
    """Return the number of threads that a variable names; 0 if it names none."""
    return int(given) if given.isdigit() else 0


def _share(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Return part `index` of `count` equal parts of `items`. If there are too few items, parts share them."""
    start, stop = (len(items) * part // count for part in (index, index + 1))
    return items[start : max(stop, start + 1)]


def _gpus(root: Path) -> list[GPU]:
    """Return the GPUs that this process may open, in the order of their PCI addresses."""
    found = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        lines = (line.partition(":") for line in (folder / "information").read_text().splitlines())
        about = {key.strip(): value.strip() for key, _, value in lines}
        if _may_be_opened(root / f"dev/nvidia{about.get('Device Minor', '')}"):
            near = numbers_in(root / f"sys/bus/pci/devices/{folder.name}/local_cpulist")
            found.append(GPU(about["GPU UUID"], near))
    return found


def _may_be_opened(device: Path) -> bool:
    """Return whether a scheduler lets this process open `device`; its control groups forbid exactly that."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True


def _named(name: str, gpus: Sequence[GPU]) -> GPU:
    """Return the GPU that CUDA_VISIBLE_DEVICES calls `name`: a number, the start of a UUID, or an unknown name."""
    if name.isdigit():
        return GPU(name, gpus[int(name)].cpus if int(name) < len(gpus) else frozenset())
    return next((gpu for gpu in gpus if gpu.name.startswith(name)), GPU(name))
