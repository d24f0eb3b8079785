"""Runs the tests marked `mpi`, of all folders, on 2, 3 and 4 ranks."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SECONDS = 270


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_the_multi_rank_tests_pass(run_ranks, tmp_path, ranks):
    finished = run_ranks(
        ranks,
        *("-m", "mpi4py", "-m", "pytest", "-x", "--only-mpi", "-p", "no:cacheprovider"),
        # A rank that hangs shows where, and ends; so all end.
        *("-o", "faulthandler_timeout=60", "-o", "faulthandler_exit_on_timeout=true"),
        *("--passed-into", str(tmp_path), str(TESTS)),
        seconds=SECONDS,
    )

    assert finished.returncode == 0, finished.stdout
    passed = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(passed) == {str(rank) for rank in range(ranks)}, finished.stdout
    assert all(passed.values()), f"a rank ran no test:\n{finished.stdout}"
    assert len(set(passed.values())) == 1, f"the ranks ran different tests:\n{finished.stdout}"
