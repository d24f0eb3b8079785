"""Which cores and which GPU of its host a rank gets: what `rank_parent` does before the rank starts.

The cores that this process may use are dealt out in blocks, NUMA domain after NUMA domain: so there is one rank a
core, or one a domain, where their numbers fit. With GPUs each rank gets one of them, and its share of the cores near
it, as if every GPU had a rank: two runs that use different GPUs never meet on a core.
"""

import os
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lucid.errors import LaunchError
from lucid.launch.limits import available_cores
from lucid.launch.rank_status import lent_descriptor

T = TypeVar("T")

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# MPICH waits busily. Ranks that share a core then wait for each other's time slices, and run 3 to 5 times slower.
YIELD_VARIABLE = "MPIR_CVAR_ENABLE_HEAVY_YIELD"


@dataclass(frozen=True)
class GPU:
    """A GPU by the name that CUDA_VISIBLE_DEVICES takes, and the hardware threads near it (none: not known)."""

    name: str
    cpus: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Machine:
    """What a process may use of its host: cores as their hardware threads, in the order of NUMA domains, and GPUs."""

    cores: tuple[frozenset[int], ...]
    gpus: tuple[GPU, ...]

    @classmethod
    def read(cls, allowed: frozenset[int], visible: str | None, root: Path = Path("/")) -> "Machine":
        """Find out from the files below `root`.

        `allowed` are the hardware threads of the affinity mask, `visible` is CUDA_VISIBLE_DEVICES.
        """
        gpus = _gpus(root)
        if visible is not None:
            gpus = [_named(name.strip(), gpus) for name in visible.split(",") if name.strip()]
        return cls(tuple(_cores(allowed, root)), tuple(gpus))

    def cores_of(self, rank: int, ranks: int) -> frozenset[int]:
        """Return the hardware threads of rank `rank` of the `ranks` of this host."""
        return frozenset().union(*_share(self.cores, rank, ranks))

    def cores_near(self, gpu: GPU) -> frozenset[int]:
        """Return the share that `gpu` has of the cores near it; of all, where none of those near it may be used."""
        near = [core for core in self.cores if core & gpu.cpus]
        neighbours = [other for other in self.gpus if other.cpus == gpu.cpus]
        return frozenset().union(*_share(near or self.cores, neighbours.index(gpu), len(neighbours)))


@dataclass(frozen=True)
class LocalRank:
    """The place of a rank among those of its host, and whether its launcher gives each of them resources of its own."""

    rank: int
    ranks: int
    has_its_own: bool

    @classmethod
    def announced(cls, environment: Mapping[str, str]) -> "LocalRank":
        """Return what the launcher says: MPICH's, Open MPI's, or srun; alone without any."""
        for rank, ranks in (
            ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ):
            if rank in environment and ranks in environment:
                return cls(int(environment[rank]), int(environment[ranks]), has_its_own=False)
        if "SLURM_STEP_ID" in environment and "SLURM_LOCALID" in environment:
            # srun tells no number for this host alone, and binds tasks itself: their number is not needed.
            return cls(int(environment["SLURM_LOCALID"]), 0, has_its_own=True)
        return cls(0, 1, has_its_own=False)


def place(environment: MutableMapping[str, str], bind: bool, with_gpus: bool) -> None:
    """Bind this process to its rank's cores and choose its rank's GPU, for what it starts with `environment`.

    `bind` deals out the cores, `with_gpus` GPUs and the cores near them. Raises `LaunchError`.
    """
    local = LocalRank.announced(environment)
    machine = Machine.read(frozenset(os.sched_getaffinity(0)), environment.get("CUDA_VISIBLE_DEVICES"))
    cores: frozenset[int] = frozenset()
    if with_gpus:
        gpu = _gpu_of(local, machine.gpus)
        # The order of the numbers that a scheduler may have given.
        environment.update({"CUDA_VISIBLE_DEVICES": gpu.name, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
        cores = machine.cores_near(gpu)
    elif bind:
        cores = machine.cores_of(local.rank, local.ranks)
    if cores and not local.has_its_own:
        os.sched_setaffinity(0, cores)
        _limit_threads(environment, sum(bool(core & cores) for core in machine.cores))


def take_share(environment: MutableMapping[str, str]) -> None:
    """Give a rank that `mpiexec` started without `lucid launch` its share of the host, as `lucid launch` would.

    It has to be called before a library reads the number of threads from `environment`. Nothing changes for a process
    without a launcher, below a `rank_parent`, or bound already, as by srun.
    """
    local = LocalRank.announced(environment)
    if local.ranks < 2 or lent_descriptor() is not None or _is_bound():
        return
    cores = available_cores()
    given = environment.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdigit() else max(1, cores // local.ranks)
    environment.update({name: environment.get(name) or str(threads) for name in THREAD_VARIABLES})
    if local.ranks > cores:
        environment.setdefault(YIELD_VARIABLE, "1")
    if local.ranks * threads == cores:
        place(environment, bind=True, with_gpus=False)


def _is_bound() -> bool:
    """Return whether the launcher has bound this process: launchers do not bind themselves."""
    try:
        return os.sched_getaffinity(0) != os.sched_getaffinity(os.getppid())
    except (AttributeError, OSError):
        return True  # not known


def _gpu_of(local: LocalRank, gpus: Sequence[GPU]) -> GPU:
    if local.has_its_own and len(gpus) == 1:
        return gpus[0]
    ranks = max(local.ranks, local.rank + 1)
    if ranks > len(gpus):
        there = f"{len(gpus) or 'no'} GPU{'s' * (len(gpus) != 1)}"
        way_out = f"start at most {len(gpus)} on a host (-n), or leave out --gpus" if gpus else "leave out --gpus"
        raise LaunchError(
            f"{os.uname().nodename} has {there} that {ranks} rank{'s' * (ranks != 1)} could use, and each needs one of "
            f"its own: {way_out}"
        )
    return gpus[local.rank]


def _limit_threads(environment: MutableMapping[str, str], cores: int) -> None:
    for variable in THREAD_VARIABLES:
        given = environment.get(variable, "")
        environment[variable] = str(min(int(given), cores) if given.isdigit() else cores)


def _share(items: Sequence[T], index: int, count: int) -> Sequence[T]:
    """Return part `index` of `count` of `items`: at least one of them, which may then be another part's as well."""
    start, stop = (len(items) * part // count for part in (index, index + 1))
    return items[start : max(stop, start + 1)]


def _cores(allowed: frozenset[int], root: Path) -> list[frozenset[int]]:
    system = root / "sys/devices/system"
    domains: dict[int, int] = {}
    for path in system.glob("node/node*/cpulist"):
        domains |= dict.fromkeys(_numbers(path), int(path.parent.name.removeprefix("node")))
    siblings = {cpu: _numbers(system / f"cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in allowed}
    cores = {others & allowed or frozenset({cpu}) for cpu, others in siblings.items()}
    return sorted(cores, key=lambda core: (domains.get(min(core), 0), min(core)))


def _gpus(root: Path) -> list[GPU]:
    """Return the GPUs that this process may open, in the order of their PCI addresses."""
    found = []
    for folder in sorted((root / "proc/driver/nvidia/gpus").glob("*")):
        lines = (line.partition(":") for line in (folder / "information").read_text().splitlines())
        about = {key.strip(): value.strip() for key, _, value in lines}
        if _may_be_opened(root / f"dev/nvidia{about.get('Device Minor', '')}"):
            near = _numbers(root / f"sys/bus/pci/devices/{folder.name}/local_cpulist")
            found.append(GPU(about["GPU UUID"], near))
    return found


def _may_be_opened(device: Path) -> bool:
    """Return whether a scheduler lets this process use `device`: a control group forbids no less than to open it."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError:
        return False
    return True


def _named(name: str, gpus: Sequence[GPU]) -> GPU:
    """Return the GPU that CUDA_VISIBLE_DEVICES calls `name`: a number, the beginning of a UUID, or else unknown."""
    if name.isdigit():
        return GPU(name, gpus[int(name)].cpus if int(name) < len(gpus) else frozenset())
    return next((gpu for gpu in gpus if gpu.name.startswith(name)), GPU(name))


def _numbers(path: Path) -> frozenset[int]:
    """Return the numbers that a file of the kernel lists, such as 0-3,8; none where it is not there."""
    try:
        text = path.read_text().strip()
    except OSError:
        return frozenset()
    ranges = [part.partition("-") for part in text.split(",") if part]
    return frozenset(number for low, _, high in ranges for number in range(int(low), int(high or low) + 1))
