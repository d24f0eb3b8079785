"""Runs the tests that need a card, and writes down each outcome as it comes.

Not those that take longest: whole runs, and compute-sanitizer, which has a part of its own.
"""

from pathlib import Path

import pytest
from card.results import Results

TESTS = Path(__file__).parents[2] / "tests" / "gpu"
LEFT_OUT = "test_sanitizer.py", "test_runs.py"
CHARACTERS_OF_A_REASON = 400


class Outcomes:
    """Of pytest: adds a line for each test that has passed, failed or been skipped."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            why = str(report.longrepr)[-CHARACTERS_OF_A_REASON:] if report.longrepr else ""
            self._results.add(test=report.nodeid, outcome=report.outcome, seconds=report.duration, why=why)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            why = str(report.longrepr)[-CHARACTERS_OF_A_REASON:]
            self._results.add(test=report.nodeid, outcome="failed", seconds=0.0, why=why)


def check(results: Results, tiny: bool) -> bool:
    """Run the tests, and return whether all have passed: tiny, a few on the emulated card."""
    if tiny:
        selected = [str(TESTS / "test_products.py"), "-m", "emulated", "-k", "test_forward"]
    else:
        selected = [str(TESTS), "-k", "card", *(f"--ignore={TESTS / name}" for name in LEFT_OUT)]
    options = ["-p", "no:cacheprovider", "-p", "no:xdist", "--maxfail=30", *selected]
    return pytest.main(options, plugins=[Outcomes(results)]) == pytest.ExitCode.OK
