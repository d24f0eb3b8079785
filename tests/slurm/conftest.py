"""A SLURM for the tests in this folder, and a checkout that is configured for it. -m slurm selects these tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import PROGRAMS, Cluster, Job, program
from launching import FEW_CORES

REPOSITORY = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            # One SLURM serves them all.
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """Two nodes under a SLURM that ends with the tests."""
    missing = [name for name in PROGRAMS if program(name) is None]
    if missing:
        pytest.skip(f"no SLURM here, {', '.join(missing)} missing: install Debian's slurm-wlm and munge")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def reference_kernels(monkeypatch):
    """These tests do not depend on kernels, and the reference kernels load fast."""
    monkeypatch.setenv("LUCID_KERNELS", "reference")


@pytest.fixture
def home(tmp_path):
    """A checkout with its own slurm/site.env."""
    home = tmp_path / "home"
    shutil.copytree(REPOSITORY / "slurm", home / "slurm", ignore=shutil.ignore_patterns("site.env"))
    for name in ("launch", "lucid"):
        (home / name).symlink_to(REPOSITORY / name)
    return home


@pytest.fixture
def submit(cluster, home, tmp_path):
    """A function that calls launch/submit.sh with ranks started by `launcher`, and returns the job."""
    submitted = []

    def run(*arguments, launcher="srun --mpi=pmi2", tasks=("",)):
        (home / "slurm" / "site.env").write_text(f'PYTHON={sys.executable}\nLAUNCHER="{launcher}"\n')
        finished = subprocess.run(
            [home / "launch" / "submit.sh", *arguments],
            env=os.environ | cluster.variables | FEW_CORES | {"PYTHONPATH": str(home)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert finished.returncode == 0, finished.stderr
        number = finished.stdout.split()[-1]
        assert finished.stdout.endswith(f"\nSubmitted batch job {number}\n")
        name = Job(cluster, number, tmp_path).shown("JobName")
        jobs = [Job(cluster, number + task, tmp_path / f"{name}-{number}{task}.out") for task in tasks]
        submitted.extend(jobs)
        return jobs[0] if len(jobs) == 1 else jobs

    yield run
    cluster.run("scancel", *(job.number for job in submitted), check=False)
    for job in submitted:
        job.wait()
