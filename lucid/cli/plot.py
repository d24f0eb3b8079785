"""`lucid plot`: plots losses, accuracies and speed of a run."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.plots import plot_run


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The plot's file: .png, .pdf or .svg. Default: RUN/loss.png.")
    ] = None,
) -> None:
    """Plot losses, accuracies and speed over the steps of a run.

    A run that still trains can be plotted, too.

    Examples:

        lucid plot runs/small_cpu

        lucid plot runs/small_cpu --output curve.pdf
    """
    picture = output or run / "loss.png"
    plot_run(run, picture)
    print(picture)
