"""`lucid doctor`: on this machine alone, on several ranks and on two hosts, and its verdicts on problems."""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hosts import LINK
from launching import FEW_CORES
from nodes import SeveralNodes

from lucid import backend
from lucid.cli import main
from lucid.cli.doctor import hosts as hosts_module
from lucid.cli.doctor import network, software, storage
from lucid.cli.doctor.findings import Level
from lucid.cli.doctor.hosts import Host, judge_hosts
from lucid.distributed import RankLocation
from lucid.distributed.communicators.mpi_start import lack_of_shared_memory
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ConfigError

SECONDS = 240
TOO_NEW = [("numpy", "99.1"), ("no-such-library", "1"), ("rich", "1.0")]
DOCTOR = ("-m", "mpi4py", "-m", "lucid", "doctor", "--folder")
# The same with the smallest of its arrays alone, and one block for the disk.
OF_4_MB = """
import sys
from lucid.cli import main
from lucid.cli.doctor import network, storage
network._MEGABYTES, storage._MOST_BYTES = (4,), 1
main(["doctor", "--folder", sys.argv[1]])
"""
QUICK_DOCTOR = ("-m", "mpi4py", "-c", OF_4_MB)

several_ranks = pytest.mark.mpi(min_size=2)


@pytest.fixture
def doctor(capsys):
    """A function that runs the command in this process, and returns its exit code and the levels by their subjects."""

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main(["doctor", *map(str, arguments)])
        output, errors = capsys.readouterr()
        assert errors == ""
        lines = [line.split(maxsplit=1) for line in output.splitlines()]
        return leaving.value.code, {line[1]: line[0] for line in lines if line[0] in set(Level)}

    return run


@pytest.fixture
def quick_disk(monkeypatch):
    """Let the disk be judged by one block."""
    monkeypatch.setattr(storage, "_MOST_BYTES", 1)


def subjects(levels):
    """Return the first words after the levels."""
    return {rest.split("  ")[0] for rest in levels}


def test_one_process_reports_on_this_machine(doctor, tmp_path):
    code, levels = doctor("--folder", tmp_path)
    assert code == 0
    assert {"Python", "libraries", "MPI", "products", "GPU", "cores", "memory", "network", "checkpoints"} <= subjects(
        levels
    )
    assert "error" not in levels.values()
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_measured_in_its_nearest_parent_and_not_made(doctor, quick_disk, tmp_path):
    code, levels = doctor("--folder", tmp_path / "runs" / "new")
    (line,) = [line for line in levels if line.startswith("checkpoints")]
    assert (code, f"{tmp_path} takes" in line) == (0, True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_and_exit_code_1(doctor):
    code, levels = doctor("--folder", "/proc/runs")
    (line,) = [line for line, level in levels.items() if level == "error"]
    assert code == 1
    assert line.startswith("checkpoints    /proc cannot be written (")


def test_several_ranks_measure_sums_and_one_reports(run_ranks, tmp_path):
    finished = run_ranks(2, *DOCTOR, str(tmp_path), seconds=SECONDS)
    assert finished.returncode == 0, finished.stdout
    for size in (4, 64):
        assert finished.stdout.count(f"all-reduce     {size} MB in ") == 1
    assert "1 host, 2 ranks" in finished.stdout
    assert finished.stdout.count("libraries") == 1


def test_an_error_on_one_rank_gives_all_exit_code_1(run_ranks):
    finished = run_ranks(2, *QUICK_DOCTOR, "/proc/runs", seconds=SECONDS)
    assert finished.returncode == 1, finished.stdout
    assert "all-reduce" in finished.stdout
    assert "Abort" not in finished.stdout


def test_two_hosts_are_measured_inside_and_between(hosts, mpiexec, tmp_path):
    finished = subprocess.run(
        [*hosts.mpiexec(mpiexec, 2), sys.executable, *QUICK_DOCTOR, str(tmp_path)],
        env=os.environ | FEW_CORES | {"UCX_NET_DEVICES": LINK},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout
    assert "2 hosts, 4 ranks" in finished.stdout
    assert "link           near to far" in finished.stdout
    assert f"by {LINK}" in finished.stdout
    assert "all-reduce     4 MB in " in finished.stdout
    assert "ms apart (" in finished.stdout
    assert hosts.bytes_sent() > 3 * 4e6


@several_ranks
def test_with_little_memory_larger_arrays_are_left_out(communicator):
    small, large = network.measure_network(communicator, 13e6)
    assert (small.level, small.text.partition(" in ")[0]) == (Level.OK, "4 MB")
    assert large.level == Level.WARNING
    assert "64 MB left out: a rank can have 13 MB of memory" in large.text


@several_ranks
def test_every_rank_has_the_same_findings_on_several_nodes(communicator):
    nodes = SeveralNodes()
    found = list(network.measure_network(nodes, 13e6))
    links = ["link"] * (nodes.node_count - 1)
    assert [finding.subject for finding in found] == [*links, "all-reduce", "all-reduce", "clocks"]
    numbers = json.dumps([finding.text for finding in found])
    assert network.gather_texts(communicator, numbers) == [numbers] * communicator.size


@several_ranks
def test_clocks_that_differ_are_a_warning(communicator):
    apart = network.judge_clocks(communicator, lambda: time.time() + 5 * communicator.rank)
    milliseconds = float(apart.text.removeprefix("at most ").partition(" ms")[0].replace(",", ""))
    assert apart.level == Level.WARNING
    assert milliseconds == pytest.approx(5000 * (communicator.size - 1), abs=500)


def test_wrong_sums_are_an_error():
    array = np.ones(1000, np.float32)
    array[7] = 2
    finding = network._judge_sum(SingleCommunicator(), array, right=1, seconds=1.0)
    assert finding.level == Level.ERROR
    assert "wrong sums" in finding.text


def test_a_sum_is_reported_with_its_rate():
    array = np.ones(1_000_000, np.float32)
    finding = network._judge_sum(SingleCommunicator(), array, right=1, seconds=0.2)
    assert finding == (Level.OK, "all-reduce", "4 MB in 200.0 ms, 0.02 GB/s")


@pytest.mark.parametrize(
    ("interface", "gigabits", "level"), [("eth0", 1.0, Level.OK), ("eth0", 10.0, Level.WARNING), ("", 0.0, Level.OK)]
)
def test_a_link_is_compared_with_the_interface_that_carried_it(interface, gigabits, level):
    finding = network._judge_link(network.Link("a", "b", 0.11e9, interface, gigabits))
    assert (finding.level, "0.88 Gbit/s" in finding.text) == (level, True)


def test_libraries_that_differ_between_hosts_are_an_error():
    finding = software._libraries({"a": {"numpy": "2.4", "rich": "14"}, "b": {"numpy": "2.4", "rich": "13"}})
    assert finding == (Level.ERROR, "libraries", "b has rich 13, but a rich 14: install the same on all hosts")


def test_a_library_that_is_missing_or_too_old_is_an_error(monkeypatch):
    monkeypatch.setattr(software, "_requirements", lambda: TOO_NEW)
    finding = software._libraries({"a": software.libraries()})
    assert finding.level == Level.ERROR
    assert finding.text.endswith("-m pip install 'numpy>=99.1' 'no-such-library>=1'")


@pytest.mark.parametrize(("answer", "level"), [(None, Level.ERROR), ("Open MPI v5.0.8, package: x", Level.OK)])
def test_one_process_reports_the_mpi_that_it_would_load(monkeypatch, answer, level):
    monkeypatch.setattr(software, "_ask_mpi4py", lambda question: answer)
    finding = software._mpi(SingleCommunicator())
    assert finding.level == level
    assert ("mpi4py finds no MPI library" in finding.text) == (answer is None)


def test_an_onednn_that_cannot_be_loaded_is_an_error(monkeypatch):
    def refuse():
        raise ConfigError("oneDNN is installed but cannot be loaded")

    monkeypatch.setattr(software.kernels, "product_library", refuse)
    assert software._products().level == Level.ERROR


def fake_cupy(gpus, nccl):
    runtime = SimpleNamespace(
        getDeviceCount=lambda: gpus,
        getDeviceProperties=lambda index: {"name": b"NVIDIA H200"},
        runtimeGetVersion=lambda: 13010,
        driverGetVersion=lambda: 12090,
    )
    nccl_module = SimpleNamespace(available=nccl, get_version=lambda: 22807)
    cuda = SimpleNamespace(is_available=lambda: gpus > 0, runtime=runtime, nccl=nccl_module)
    return SimpleNamespace(__version__="14.0.1", cuda=cuda)


@pytest.fixture
def with_gpus(monkeypatch):
    """A function that replaces CuPy by a fake with some GPUs."""

    def put(*, gpus, nccl=True):
        cupy = fake_cupy(gpus, nccl)
        for name, module in (("cupy", cupy), ("cupy.cuda", cupy.cuda)):
            monkeypatch.setitem(sys.modules, name, module)

    return put


def test_gpus_are_reported_with_their_software(with_gpus):
    with_gpus(gpus=4)
    text = software._gpu().text
    assert text.startswith("4 x NVIDIA H200, CuPy 14.0.1, CUDA 13.1, driver for CUDA 12.9, NCCL 2.28")


def test_gpus_without_nccl_are_a_warning(with_gpus):
    with_gpus(gpus=1, nccl=False)
    assert software._gpu().level == Level.WARNING


def test_a_machine_without_gpus_is_ok(with_gpus, monkeypatch):
    with_gpus(gpus=0)
    assert software._gpu() == (Level.OK, "GPU", "no GPU (CuPy is installed)")
    monkeypatch.setitem(sys.modules, "cupy", None)  # its import fails
    assert backend.gpu_software() is None


def test_a_driver_that_cuda_finds_too_old_is_a_warning_with_the_reason(with_gpus, monkeypatch, tmp_path):
    def refuse():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version")

    with_gpus(gpus=0)
    monkeypatch.setattr(sys.modules["cupy"].cuda.runtime, "getDeviceCount", refuse)
    with pytest.raises(ConfigError, match=r"no such GPU is visible .* \(cudaErrorInsufficientDriver: CUDA driver"):
        backend.gpu_library()
    assert software._gpu() == (Level.OK, "GPU", "no GPU (CuPy is installed)")
    monkeypatch.setattr(software, "_NVIDIA", tmp_path)
    found = software._gpu()
    assert (found.level, "driver version is insufficient" in found.text) == (Level.WARNING, True)


def test_a_gpu_without_cupy_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(software, "_NVIDIA", tmp_path)
    finding = software._gpu()
    assert (finding.level, "pip install 'lucid-bert[cuda13]'" in finding.text) == (Level.WARNING, True)


def host(name="a", ranks=1, memory_free=50e9, shared=50e9, interfaces=None, lack=None):
    return Host(name, ranks, int(64e9), int(memory_free), int(shared), lack, interfaces or {"eth0": 10.0}, {})


def levels_of(found, places):
    return {finding.subject: (finding.level, finding.text) for finding in judge_hosts(found, places)}


def test_findings_are_about_the_worst_host():
    found = [host("a", ranks=2), host("b", ranks=2, memory_free=2e9, shared=0.1e9), host("c", ranks=2)]
    places = [RankLocation(name, (0, 1), 2, 1, "cpu") for name in "aabbcc"]
    levels = levels_of(found, places)
    assert levels["cores"][0] == Level.OK
    assert levels["memory"][0] == levels["shared memory"][0] == Level.WARNING
    assert levels["memory"][1].startswith("2.0 GB free of 64.0 for 2 ranks on b, the least: ")
    assert levels["network"] == (Level.OK, "eth0 10 Gbit/s on a and 2 more")


def test_a_host_without_shared_memory_is_a_warning(tmp_path):
    lack = lack_of_shared_memory(1, tmp_path / "missing")
    level, text = levels_of([host(), host("b", lack=lack)], [RankLocation("a", (0,), 1, 1, "cpu")])["shared memory"]
    assert level == Level.WARNING
    assert text.startswith(
        f"MPI could not start on b: {tmp_path}/missing, the folder of shared memory, is missing: mount"
    )


def test_more_threads_than_cores_are_a_warning():
    shared = [RankLocation("a", (0, 1), 2, 2, "cpu")] * 2
    level, text = levels_of([host(ranks=2)], shared)["cores"]
    assert (level, text.startswith("4 threads on 2 cores: they take turns")) == (Level.WARNING, True)
    own = [RankLocation("a", (core,), 1, 1, "cpu") for core in range(2)]
    assert levels_of([host(ranks=2)], own)["cores"] == (Level.OK, "2 threads on 2 cores")


def test_interfaces_that_are_up_are_reported_with_their_speeds(monkeypatch, tmp_path):
    for name, (state, speed) in {
        "lo": ("unknown", "0"), "eth0": ("up", "25000"), "eth1": ("down", "1000"), "veth": ("up", "-1")
    }.items():  # fmt: skip
        (tmp_path / "net" / name).mkdir(parents=True)
        (tmp_path / "net" / name / "operstate").write_text(f"{state}\n")
        (tmp_path / "net" / name / "speed").write_text(f"{speed}\n")
    port = tmp_path / "infiniband" / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "rate").write_text("200 Gb/sec (4X HDR)\n")
    monkeypatch.setattr(hosts_module, "NETWORKS", tmp_path / "net")
    monkeypatch.setattr(hosts_module, "INFINIBAND", tmp_path / "infiniband")
    assert hosts_module.interfaces() == {"eth0": 25.0, "veth": 0.0, "mlx5_0:1": 200.0}


def test_a_slow_disk_is_a_warning(quick_disk, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "_SLOW", 1e15)
    finding = storage.measure_storage(tmp_path)
    assert finding.level == Level.WARNING
    assert "choose a faster disk" in finding.text


def test_a_disk_with_little_room_is_a_warning(quick_disk, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "_CHECKPOINT", 1e18)
    assert "make room" in storage.measure_storage(tmp_path).text
