"""Options of commands that take a model."""

from enum import StrEnum
from typing import Annotated

import typer

BestOption = Annotated[
    bool,
    typer.Option("--best", help="Take the run's checkpoint with the least held-out loss (train.keep_best)."),
]


class PoolingChoice(StrEnum):
    """How the hidden states of a text become one vector."""

    MEAN = "mean"
    FIRST = "first"


PoolingOption = Annotated[
    PoolingChoice | None,
    typer.Option(
        help="The vector of a text: the mean of the last hidden states of all its tokens, or the state of the first "
        "one, [CLS]. Default: as the model's folder says (modules.json), or mean.",
        show_default=False,
    ),
]
