"""Arguments and options of commands that take a model, and run it on one rank or several."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="The folder of a run, a checkpoint or a model.", show_default=False)
]
BestOption = Annotated[
    bool,
    typer.Option("--best", help="Take the run's checkpoint with the least held-out loss (train.keep_best)."),
]
WatchdogOption = Annotated[
    float, typer.Option(min=0, help="Seconds that ranks wait for a missing one before all end; 0: no limit.")
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
