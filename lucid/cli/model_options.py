"""The option `--best` of commands that take a run as a model."""

from typing import Annotated

import typer

BestOption = Annotated[
    bool,
    typer.Option("--best", help="Take the run's checkpoint with the least held-out loss (train.keep_best)."),
]
