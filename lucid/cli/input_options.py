"""The options of commands that read text."""

from typing import Annotated

import typer

TextFields = Annotated[
    list[str],
    typer.Option(
        "--text-field",
        metavar="[INPUT=]FIELD",
        help="Field of .jsonl, or column of a table, with the text: of all inputs, or of one. May be repeated.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="KIND",
        help="What files without a suffix, named files of another suffix, and the standard input are: txt, jsonl, csv, "
        "tsv, md or html. Default: their content tells.",
        show_default=False,
    ),
]
