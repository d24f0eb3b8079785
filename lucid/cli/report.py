"""`lucid report`: a page about a run, or about several runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.report.facts import RunFacts
from lucid.analysis.report.page import page_of
from lucid.distributed import is_first_rank
from lucid.errors import ConfigError
from lucid.files import written_aside

PAGE = "report.html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="The folders of runs.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help=f"The page's file. Default: RUN/{PAGE}; of several runs {PAGE}.", show_default=False
        ),
    ] = None,
) -> None:
    """Write a report of a run as one HTML page: results, curves, speed, waits, restarts, settings.

    The page needs no other file and no network. Several runs stand side by side. A run that still trains can be
    reported, too, and so can a copy of its folder; the page says what is missing.

    Examples:

        lucid report runs/small_cpu

        lucid report runs/a runs/b --output comparison.html
    """
    if not is_first_rank():
        return
    page = output or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    if page.is_dir():
        raise ConfigError(f"{page} is a folder: give the name of a file, such as {page / PAGE}")
    text = page_of([RunFacts.of(run) for run in runs])
    with written_aside(page, ConfigError) as file:
        file.write(text.encode("utf-8", "replace"))
    print(page)
