"""`lucid show`: the samples of any step of a run, and the steps that hold a document."""

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.run_settings import Overrides
from lucid.cli.show.document import print_sightings
from lucid.cli.show.step import FIRST_ROWS, print_step
from lucid.distributed import is_first_rank
from lucid.errors import ConfigError
from lucid.training.history import History


def show(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The folder of a run, or the YAML file of one that has not begun.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    step: Annotated[
        int | None, typer.Option(help="Step whose samples are shown, counted from 1 as in the log.", show_default=False)
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS",
            help=f"Rows of the global batch: 7, 0-15 or all. Default: the first {FIRST_ROWS}.",
            show_default=False,
        ),
    ] = None,
    rank_of: Annotated[
        int | None,
        typer.Option(
            min=1, help="Say which of so many ranks computes each row, in which micro-batch.", show_default=False
        ),
    ] = None,
    loss: Annotated[bool, typer.Option("--loss", help="Show the losses of each row at a checkpoint.")] = False,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            metavar="STEP",
            help="The checkpoint for --loss. Default: the newest from before the step, or else the oldest.",
            show_default=False,
        ),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:LINE", help="List the steps that hold the document that begins here.", show_default=False
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="List the steps that hold the documents with this text.", show_default=False)
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(metavar="FIRST-LAST", help="Steps to list. Default: all of the run.", show_default=False),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
) -> None:
    """Show the samples of any step of a run, or list the steps that hold a document.

    Nothing is replayed: samples are computed from the run's seed, as training computes them. Their text is decoded from
    tokens, because a corpus holds no other. Rows, ranks and samples are counted from 0, steps and epochs from 1.

    Examples:

        lucid show runs/small_cpu --step 812 --rank-of 8

        lucid show runs/small_cpu --step 812 --rows all --loss

        lucid show my.yaml --step 1

        lucid show runs/small_cpu --document wiki/AA/wiki_00.jsonl:17
    """
    if not is_first_rank():
        return
    if [step, document, text].count(None) != 2:
        raise ConfigError("say what to show: one of --step, --document and --text")
    of_step = {"--rows": rows, "--rank-of": rank_of, "--loss": loss or None, "--checkpoint": checkpoint}
    misplaced = {"--steps": steps} if step is not None else of_step
    if given := [option for option, value in misplaced.items() if value is not None]:
        raise ConfigError(
            f"{given[0]} is for {'--document and --text' if step is not None else '--step'}: leave it out"
        )
    if checkpoint is not None and not loss:
        raise ConfigError("--checkpoint is for the losses: add --loss")
    history = History.of(run, overrides or ())
    chosen_steps = None if steps is None else _range("--steps", steps, 1)
    for message in history.messages:
        print(message, file=sys.stderr)
    if step is None:
        print_sightings(history, document, text, chosen_steps, as_json)
    else:
        chosen_rows = _rows(rows, history.at(step).config.train.global_batch)
        weights = history.checkpoint_for(step, checkpoint) if loss else None
        print_step(history, step, chosen_rows, rank_of, weights, as_json)
    wanted = range(step, step + 1) if step is not None else chosen_steps or range(1, history.last + 1)
    if doubt := history.doubt(wanted):
        print(doubt, file=sys.stderr)


def _rows(text: str | None, batch: int) -> range:
    """Return the rows of a global batch that are asked for. Raises `ConfigError`."""
    few = f"0-{min(FIRST_ROWS, batch) - 1}"
    return range(batch) if text == "all" else _range("--rows", few if text is None else text, 0)


def _range(option: str, text: str, least: int) -> range:
    """Return the range in "5" or "5-9". Raises `ConfigError`."""
    match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", text, re.ASCII)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (-1, -1)
    if not least <= first <= last:
        raise ConfigError(f"{option} is {text!r}: give a number from {least} on, or a range such as {least}-9")
    return range(first, last + 1)
