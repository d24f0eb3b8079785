"""The line of progress fits into its terminal, the most useful first."""

import pytest

from lucid.training.reports import fitting

STEP, LOSS, MLM, NSP = "step  1200/20000", "loss 5.207", "MLM 22.6%", "NSP 76.4%"
SPEED, FLOPS, LEFT = "862 sequences/s", "182.7 GFLOP/s", "0:12:41 left"
PARTS = [STEP, LOSS, MLM, NSP, SPEED, FLOPS, LEFT]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (120, PARTS),
        (99, [STEP, LOSS, MLM, NSP, SPEED, FLOPS, LEFT]),
        (80, [STEP, LOSS, MLM, SPEED, LEFT]),
        (60, [STEP, LOSS, MLM, LEFT]),
        (40, [STEP, LOSS]),
        (20, [STEP]),
        (1, [STEP]),
    ],
)
def test_a_narrow_terminal_shows_the_most_useful(width, shown):
    assert fitting(PARTS, width) == "  ".join(shown)


def test_what_a_run_does_not_have_takes_no_room():
    assert fitting([STEP, LOSS, MLM, "", SPEED, FLOPS, LEFT]) == "  ".join([STEP, LOSS, MLM, SPEED, FLOPS, LEFT])
    assert fitting([STEP], 5) == STEP
