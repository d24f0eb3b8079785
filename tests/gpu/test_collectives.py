"""NCCL on a card: every collective of one rank, tested as those of several are on the emulated ones."""

from pathlib import Path

import pytest

DISTRIBUTED = Path(__file__).parents[1] / "distributed"
SECONDS = 200


@pytest.mark.parametrize("gpu_environment", ["card"], indirect=True)
def test_every_collective_of_one_rank_over_nccl(run_ranks, gpu_environment, tmp_path):
    finished = run_ranks(
        1,
        *("-m", "mpi4py", "-m", "pytest", "-x", "--only-mpi", "-m", "emulated", "-p", "no:cacheprovider"),
        *("-o", "faulthandler_timeout=60", "-o", "faulthandler_exit_on_timeout=true"),
        *("--passed-into", str(tmp_path), str(DISTRIBUTED)),
        seconds=SECONDS,
        **(gpu_environment or {}),
    )
    assert finished.returncode == 0, finished.stdout
    passed = (tmp_path / "0").read_text()
    for collective in ("all_reduce", "reduce_scatter", "all_gather", "broadcast"):
        assert f"test_{collective}" in passed, finished.stdout
