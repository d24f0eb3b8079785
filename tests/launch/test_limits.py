"""How much of its machine a process may use, read from made-up file systems."""

import subprocess
import sys

import pytest

from lucid.launch.limits import available_cores, cpu_limit, memory_limit


def test_the_cores_are_those_that_this_process_may_use():
    program = (
        "import os; from lucid.launch.limits import available_cores; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(available_cores())"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert finished.stdout == b"1\n"
    assert available_cores() >= 1


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, (None, None)),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, (None, None)),
        (
            {
                "proc/self/cgroup": "0::/job/step",
                "sys/fs/cgroup/job/cpu.max": "250000 100000",
                "sys/fs/cgroup/job/memory.max": "3000",
                "sys/fs/cgroup/job/memory.current": "1000",
                "sys/fs/cgroup/job/memory.stat": "anon 700\ninactive_file 200\nactive_file 100",
                "sys/fs/cgroup/job/step/cpu.max": "max 100000",
                "sys/fs/cgroup/job/step/memory.max": "4000",
                "sys/fs/cgroup/job/step/memory.current": "900",
                "sys/fs/cgroup/job/step/memory.stat": "anon 700",
                "sys/fs/cgroup/other/cpu.max": "1 100000",
            },
            (2.5, (3000, 2200)),
        ),
        (
            {
                "proc/self/cgroup": "7:memory:/job\n3:cpu,cpuacct:/job\n0::/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2**63 - 4096),
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "6000",
                "sys/fs/cgroup/memory/memory.stat": "cache 1000",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "5000",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "4000",
                "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 0\ntotal_inactive_file 500",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "400000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            (4.0, (5000, 1500)),
        ),
        # A container that does not see the groups above its own.
        (
            {
                "proc/self/cgroup": "0::/docker/abc",
                "sys/fs/cgroup/cpu.max": "100000 100000",
                "sys/fs/cgroup/memory.max": "6000",
                "sys/fs/cgroup/memory.current": "6000",
                "sys/fs/cgroup/memory.stat": "inactive_file 10",
            },
            (1.0, (6000, 10)),
        ),
    ],
    ids=["none", "unlimited", "version-2", "version-1", "container"],
)
def test_the_lowest_limit_of_all_control_groups_applies(tmp_path, files, limits):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert (cpu_limit(tmp_path), memory_limit(tmp_path)) == limits
