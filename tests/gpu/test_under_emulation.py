"""Runs the tests marked `emulated`, of all folders, in processes that have an emulated GPU: in one, and on ranks.

Other numbers of ranks, which add little to two, are left to the long tests, and so are those that are marked as such.
"""

import sys
from pathlib import Path

import pytest
from launching import run_to_end, with_emulation
from stand_in.building import why_no_stand_in

TESTS = Path(__file__).parents[1]
KERNELS = Path(__file__).parent / "kernels"
SECONDS, HANG_AFTER = 840, 200

pytestmark = [
    pytest.mark.skipif(why_no_stand_in() != "", reason=why_no_stand_in()),
    pytest.mark.timeout(SECONDS + 60),
]


ALL, SHORT, LONG = "emulated", "emulated and not long", "emulated and long"


@pytest.mark.parametrize(
    ("marked", "tests"),
    [
        pytest.param(ALL, (str(KERNELS),), id="of kernels"),
        pytest.param(SHORT, (str(TESTS), f"--ignore={KERNELS}"), id="all others"),
        pytest.param(LONG, (str(TESTS), f"--ignore={KERNELS}"), id="long ones", marks=pytest.mark.long),
    ],
)
def test_the_tests_of_one_process_pass(marked, tests):
    assert_pass_in_one_process(marked, tests)


@pytest.mark.long
def test_they_pass_in_another_order_that_streams_may_do_their_work_in(pass_on_ranks):
    assert_pass_in_one_process(SHORT, (str(TESTS), f"--ignore={KERNELS}"), EMULATED_STREAMS="1")
    emulation = with_emulation(EMULATED_GPUS="2", EMULATED_STREAMS="1")
    pass_on_ranks(2, "-m", SHORT, hang_after=HANG_AFTER, seconds=SECONDS, **emulation)


def assert_pass_in_one_process(marked, tests, **variables):
    options = ("-m", marked, "-p", "no:cacheprovider", "--durations=5")
    # A test that hangs shows where.
    hanging = ("-o", f"faulthandler_timeout={HANG_AFTER}", "-o", "faulthandler_exit_on_timeout=true")
    command = [sys.executable, "-m", "pytest", "-x", *options, *hanging, *tests]
    finished = run_to_end(command, SECONDS, with_emulation(**variables))
    assert finished.returncode == 0, finished.stdout
    assert " passed" in finished.stdout, finished.stdout


@pytest.mark.parametrize(
    ("ranks", "marked"),
    [
        (2, SHORT),
        *(pytest.param(*each, marks=pytest.mark.long) for each in ((1, SHORT), (2, LONG), (3, SHORT), (4, SHORT))),
    ],
)
def test_the_tests_of_several_ranks_pass(pass_on_ranks, ranks, marked):
    emulation = with_emulation(EMULATED_GPUS=str(ranks))
    pass_on_ranks(ranks, "-m", marked, hang_after=HANG_AFTER, seconds=SECONDS, **emulation)
