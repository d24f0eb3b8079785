"""`lucid plot`: plots losses, accuracies and speed of a run, or of several for comparison."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.logged_run import Progress
from lucid.analysis.plots import plot_runs


def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The plot's file: .png, .pdf or .svg. Default: RUN/loss.png; of several runs comparison.png.",
        ),
    ] = None,
    by: Annotated[
        Progress, typer.Option(help="What curves are drawn over: steps, tokens without padding, or hours of training.")
    ] = "steps",
    smooth: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Lines of the log of which a point of a training curve is the mean; 1: none. Default: by length.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Plot losses, accuracies, learning rate and speed of a run, or compare several runs.

    A run that still trains can be plotted, too. The legend of several runs shows the settings in which they differ.
    Hours are those of steps alone, without evaluations, checkpoints and pauses.

    Examples:

        lucid plot runs/small_cpu

        lucid plot runs/a runs/b --by tokens --output curves.pdf
    """
    picture = output or (runs[0] / "loss.png" if len(runs) == 1 else Path("comparison.png"))
    view = plot_runs(runs, picture, by, smooth)
    if view.by != by:
        print(view.remarks[0], file=sys.stderr)
    print(picture)
