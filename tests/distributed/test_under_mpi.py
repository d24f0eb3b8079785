"""Runs the tests marked `mpi`, of all folders, on 2, 3 and 4 ranks of the pool."""

import pytest


class Passed:
    """A plugin of pytest that notes the tests that passed."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.names.append(report.nodeid)


def run_marked_tests(files: list[str]) -> tuple[int, list[str]]:
    """Run the tests marked `mpi` on this rank; return pytest's exit code and the names of those that passed."""
    passed = Passed()
    code = pytest.main(["-x", "--only-mpi", "-p", "no:cacheprovider", *files], plugins=[passed])
    return int(code), passed.names


@pytest.mark.timeout(360)  # until the pool has started, and all of its time for the job
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long), 4])
def test_the_multi_rank_tests_pass(rank_pool, files_for_ranks, ranks):
    results = rank_pool.run(ranks, run_marked_tests, [*map(str, files_for_ranks)], seconds=200)
    codes, names = zip(*(result.value for result in results), strict=True)
    assert set(codes) == {0}, "".join(result.output for result in results)
    assert names[0]
    assert names.count(names[0]) == ranks, "the ranks ran different tests"
