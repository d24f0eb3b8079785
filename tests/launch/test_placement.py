"""Placement: the cores and the GPU of a rank, on machines that consist of made-up files."""

import os
import subprocess
import sys

import pytest

from lucid.errors import LaunchError
from lucid.launch import placement
from lucid.launch.limits import available_cores
from lucid.launch.placement import GPU, THREAD_VARIABLES, YIELD_VARIABLE, LocalRank, Machine


def ranges(numbers):
    return ",".join(map(str, numbers))


@pytest.fixture
def machine(tmp_path):
    """A function that makes the files of a machine of two NUMA domains, and reads them.

    It has 16 hardware threads: n and n + 8 are one core, even cores are in domain 0, odd ones in domain 1. `gpus` are
    the domains of GPUs.
    """

    def write(path, text):
        path = tmp_path / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def make(allowed=frozenset(range(16)), visible=None, gpus=()):
        for cpu in range(16):
            write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", ranges((cpu % 8, cpu % 8 + 8)))
        near = [[cpu for cpu in range(16) if cpu % 2 == domain] for domain in (0, 1)]
        for domain in (0, 1):
            write(f"sys/devices/system/node/node{domain}/cpulist", ranges(near[domain]))
        for number, domain in enumerate(gpus):
            address = f"0000:{number + 1:02x}:00.0"
            about = f"Model: \t\t A\nGPU UUID: \t GPU-{number}a-b\nDevice Minor: \t {number}"
            write(f"proc/driver/nvidia/gpus/{address}/information", about)
            write(f"sys/bus/pci/devices/{address}/local_cpulist", ranges(near[domain]))
            write(f"dev/nvidia{number}", "")
        return Machine.read(frozenset(allowed), visible, tmp_path)

    return make


def cores(threads):
    """The cores of hardware threads, by the number of their first thread."""
    assert all((cpu + 8) % 16 in threads for cpu in threads)
    return sorted(cpu for cpu in threads if cpu < 8)


def test_as_many_ranks_as_cores_get_one_each_domain_after_domain(machine):
    each = [cores(machine().cores_of(rank, 8)) for rank in range(8)]
    assert each == [[0], [2], [4], [6], [1], [3], [5], [7]]


def test_as_many_ranks_as_domains_get_one_each(machine):
    assert [cores(machine().cores_of(rank, 2)) for rank in range(2)] == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize("ranks", [1, 3, 5])
def test_any_number_of_ranks_shares_all_cores_once(machine, ranks):
    each = [cores(machine().cores_of(rank, ranks)) for rank in range(ranks)]
    assert sorted(core for share in each for core in share) == list(range(8))
    assert max(map(len, each)) - min(map(len, each)) <= 1


def test_more_ranks_than_cores_take_turns(machine):
    each = [cores(machine().cores_of(rank, 16)) for rank in range(16)]
    assert all(len(share) == 1 for share in each)
    assert sorted(core for share in each for core in share) == sorted([*range(8), *range(8)])


def test_ranks_get_only_cores_in_the_affinity_mask(machine):
    allowed = machine(allowed={1, 3, 9})
    assert [allowed.cores_of(rank, 2) for rank in range(2)] == [{1, 9}, {3}]


def test_without_information_each_hardware_thread_counts_as_a_core(tmp_path):
    unknown = Machine.read(frozenset({0, 1}), None, tmp_path)
    assert unknown == Machine((frozenset({0}), frozenset({1})), ())


def test_gpus_that_are_near_the_same_cores_share_them(machine):
    there = machine(gpus=(0, 0, 1))
    assert [gpu.name for gpu in there.gpus] == ["GPU-0a-b", "GPU-1a-b", "GPU-2a-b"]
    assert [cores(there.cores_near(gpu)) for gpu in there.gpus] == [[0, 2], [4, 6], [1, 3, 5, 7]]


def test_a_gpu_far_from_all_allowed_cores_shares_these(machine):
    there = machine(allowed={1, 9}, gpus=(0,))
    assert there.cores_near(there.gpus[0]) == {1, 9}


@pytest.mark.parametrize(
    ("visible", "names", "domains"),
    [
        ("1,2", ["1", "2"], [0, 1]),
        (" 2 , 0", ["2", "0"], [1, 0]),
        ("GPU-2a", ["GPU-2a-b"], [1]),
        ("MIG-7", ["MIG-7"], [None]),
        ("9", ["9"], [None]),
        ("", [], []),
    ],
)
def test_only_gpus_that_a_scheduler_made_visible_are_used(machine, visible, names, domains):
    gpus = machine(visible=visible, gpus=(0, 0, 1)).gpus
    assert [gpu.name for gpu in gpus] == names
    assert [min(gpu.cpus) if gpu.cpus else None for gpu in gpus] == domains


def test_a_gpu_that_may_not_be_opened_is_left_out(machine, tmp_path):
    machine(gpus=(0, 1))
    (tmp_path / "dev/nvidia0").unlink()
    assert [gpu.name for gpu in machine(gpus=()).gpus] == ["GPU-1a-b"]


@pytest.mark.parametrize(
    ("environment", "local"),
    [
        ({}, LocalRank(0, 1, has_its_own=False)),
        ({"MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}, LocalRank(1, 4, has_its_own=False)),
        (
            {"OMPI_COMM_WORLD_LOCAL_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "3", "SLURM_STEP_ID": "0"},
            LocalRank(2, 3, has_its_own=False),
        ),
        ({"SLURM_STEP_ID": "0", "SLURM_LOCALID": "3", "PMI_RANK": "7"}, LocalRank(3, 0, has_its_own=True)),
        ({"SLURM_LOCALID": "0"}, LocalRank(0, 1, has_its_own=False)),
    ],
    ids=["alone", "hydra", "openmpi-in-slurm", "srun", "batch-script"],
)
def test_the_local_rank_is_the_one_that_the_launcher_announces(environment, local):
    assert LocalRank.announced(environment) == local


def test_a_rank_gets_the_gpu_of_its_local_number():
    gpus = [GPU("a"), GPU("b")]
    assert [placement._gpu_of(LocalRank(rank, 2, has_its_own=False), gpus).name for rank in (0, 1)] == ["a", "b"]
    assert placement._gpu_of(LocalRank(1, 0, has_its_own=True), gpus).name == "b"


def test_the_only_gpu_that_srun_shows_to_a_rank_belongs_to_it():
    assert placement._gpu_of(LocalRank(3, 0, has_its_own=True), [GPU("0")]).name == "0"


@pytest.mark.parametrize(
    ("local", "gpus", "there"),
    [
        (LocalRank(0, 3, has_its_own=False), 2, "has 2 usable GPUs for 3 ranks.*start at most 2"),
        (LocalRank(0, 1, has_its_own=False), 0, "has no usable GPUs for 1 rank,.*: leave out --gpus$"),
        (LocalRank(0, 2, has_its_own=False), 1, "has 1 usable GPU for 2 ranks"),
        (LocalRank(2, 0, has_its_own=True), 2, "has 2 usable GPUs for 3 ranks"),
    ],
)
def test_more_ranks_than_gpus_are_refused(local, gpus, there):
    with pytest.raises(LaunchError, match=there):
        placement._gpu_of(local, [GPU(str(number)) for number in range(gpus)])


REPORT = "import os; print(sorted(os.sched_getaffinity(0)), os.environ.get('OMP_NUM_THREADS'))"


def start_parent(*arguments, program=REPORT, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lucid.launch.rank_parent", *arguments, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_the_parent_binds_its_rank_to_its_cores_and_their_number_of_threads():
    allowed = sorted(os.sched_getaffinity(0))
    machine = Machine.read(frozenset(allowed), None)
    for rank in range(2):
        place = {"MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": "2", "OMP_NUM_THREADS": "64"}
        own = machine.cores_of(rank, 2)
        count = sum(bool(core & own) for core in machine.cores)
        assert start_parent("--bind", **place).stdout == f"{sorted(own)} {count}\n"
        assert start_parent(**place).stdout == f"{allowed} 64\n"


def test_a_parent_that_finds_too_few_gpus_refuses_in_one_sentence():
    finished = start_parent("--gpus", CUDA_VISIBLE_DEVICES="")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("lucid: ")
    assert "has no usable GPUs" in finished.stderr


def test_the_parent_shows_its_rank_one_gpu():
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER'])"
    finished = subprocess.run(
        [sys.executable, "-m", "lucid.launch.rank_parent", "--gpus", "-c", program],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert finished.stdout == "5 PCI_BUS_ID\n"


SHARE = """
import os
from lucid.launch.placement import take_share
take_share(os.environ)
names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "MPIR_CVAR_ENABLE_HEAVY_YIELD")
print(sorted(os.sched_getaffinity(0)), *(os.environ.get(name) for name in names))
"""


def share(**environment):
    """Return the cores and threads of a process with these variables of a launcher."""
    kept = {name: text for name, text in os.environ.items() if name not in (*THREAD_VARIABLES, YIELD_VARIABLE)}
    command = [sys.executable, "-c", SHARE]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True).stdout.strip()


def hydra(rank, ranks):
    return {"MPI_LOCALRANKID": str(rank), "MPI_LOCALNRANKS": str(ranks)}


def test_ranks_of_a_bare_mpiexec_share_cores_and_threads():
    allowed, cores = sorted(os.sched_getaffinity(0)), available_cores()
    machine = Machine.read(frozenset(allowed), None)
    for rank in range(cores):
        own = machine.cores_of(rank, cores) if cores == len(machine.cores) else allowed
        if cores > 1:
            assert share(**hydra(rank, cores)) == f"{sorted(own)} 1 1 None"
    assert share(**hydra(0, 2), OMP_NUM_THREADS=str(cores)) == f"{allowed} {cores} {cores} {'1' if cores < 2 else None}"
    assert share(**hydra(0, cores + 1)) == f"{allowed} 1 1 1"


def test_a_number_of_threads_that_is_none_is_not_taken():
    assert share(**hydra(0, 2), OMP_NUM_THREADS="0") == share(**hydra(0, 2))


def test_a_process_without_a_launcher_and_one_that_srun_binds_keep_what_they_have():
    allowed = sorted(os.sched_getaffinity(0))
    assert share() == f"{allowed} None None None"
    assert share(SLURM_STEP_ID="0", SLURM_LOCALID="1", PMI_RANK="1", PMI_SIZE="2") == f"{allowed} None None None"


def test_a_rank_below_a_parent_keeps_what_that_gave_it():
    allowed = sorted(os.sched_getaffinity(0))
    assert start_parent(program=SHARE, **hydra(1, 2), OMP_NUM_THREADS="").stdout.startswith(f"{allowed}  ")


START_RANK = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SHARE!r}])"


@pytest.mark.parametrize("program_of_launcher", [SHARE, START_RANK], ids=["the rank", "a script that starts the rank"])
def test_a_rank_that_its_launcher_has_bound_keeps_its_cores(program_of_launcher):
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("there is one core to be bound to")
    program = f"import os; os.sched_setaffinity(0, [{allowed[-1]}])\n{program_of_launcher}"
    finished = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | hydra(0, 2), capture_output=True, text=True, check=True
    )
    assert finished.stdout.startswith(f"[{allowed[-1]}] ")


def test_two_ranks_of_a_real_mpiexec_get_what_lucid_launch_would_give_them(mpiexec):
    cores = available_cores()
    machine = Machine.read(frozenset(os.sched_getaffinity(0)), None)
    kept = {name: text for name, text in os.environ.items() if name not in (*THREAD_VARIABLES, YIELD_VARIABLE)}
    output = subprocess.check_output([mpiexec, "-n", "2", sys.executable, "-c", SHARE], env=kept, text=True)
    takes_all = 2 * max(1, cores // 2) == cores
    threads, yields = max(1, cores // 2), "1" if cores < 2 else None
    blocks = [machine.cores_of(rank, 2) if takes_all else os.sched_getaffinity(0) for rank in range(2)]
    assert sorted(output.splitlines()) == sorted(f"{sorted(block)} {threads} {threads} {yields}" for block in blocks)
