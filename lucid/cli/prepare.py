"""`lucid prepare`: makes a corpus for training out of text."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from lucid.data import Manifest
from lucid.data.manifest import DROPPED_FILE
from lucid.distributed import session
from lucid.preparation import prepare as prepare_corpus

# As many as take less than a gibibyte of memory together.
_WORKERS = 12


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files or folders of .txt (a blank line separates documents), .jsonl, both also .gz and .zst, and "
            ".parquet; or python-docs, the documentation of this Python.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the corpus.", show_default=False)],
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary that is trained.")] = 30522,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a BERT tokenizer to use instead: tokenizer.json or vocab.txt.", show_default=False
        ),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the documents kept for evaluation.")] = 0.05,
    text_field: Annotated[str, typer.Option(help="Field of .jsonl, or column of .parquet, with the text.")] = "text",
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="Each .txt is one document, blank lines or not.")
    ] = False,
    language: Annotated[str, typer.Option(help="Language whose sentences are split, as a code.")] = "en",
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Leave out documents whose text stands before them too.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that cannot be used.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help=f"Processes; under mpirun, of each rank. Default: the cores, at most {_WORKERS}, or 1 a rank."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another corpus in the folder.")] = False,
) -> None:
    """Prepare a corpus: split text into sentences, tokenize them, and write shards that training reads.

    Run again with the same inputs and options, it goes on where it was cut short, or sees that the corpus is there and
    does nothing. Under mpirun the ranks share the work; the corpus is the same, whatever their number.

    Examples:

        lucid prepare python-docs --output data/python-docs --vocab-size 4096

        lucid prepare books/ news.jsonl.gz --output data/mine

        lucid prepare notes/ --output data/notes --tokenizer models/bert-base-uncased
    """
    with session() as group:
        with _progress_bar(group.rank == 0) as bar:
            manifest = prepare_corpus(
                inputs,
                output,
                vocab_size=vocab_size,
                tokenizer=tokenizer,
                held_out=held_out,
                text_field=text_field,
                whole_files=whole_files,
                language=language,
                drop_duplicates=drop_duplicates,
                strict=strict,
                overwrite=overwrite,
                workers=workers or (min(len(os.sched_getaffinity(0)), _WORKERS) if group.size == 1 else 1),
                ranks=group,
                report=bar,
            )
        if group.rank == 0:
            _print_summary(manifest, output, bar.stage)


class _Bar:
    """Shows the stage that is reported, and how far it is."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.stage = progress, "starting"
        self._task = progress.add_task(self.stage, total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self._progress.reset(self._task, description=stage, total=total or None)
        self._progress.update(self._task, completed=done)


@contextmanager
def _progress_bar(shown: bool) -> Iterator[_Bar]:
    """Show progress on standard error for the length of the block."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    hidden = not (shown and console.is_terminal)
    with Progress("{task.description}", *columns, console=console, transient=True, disable=hidden) as progress:
        yield _Bar(progress)


def _print_summary(manifest: Manifest, output: Path, outcome: str) -> None:
    table = Table("split", "documents", "sentences", "tokens")
    for name, split in manifest.splits.items():
        table.add_row(name, f"{split.documents:,}", f"{split.sentences:,}", f"{split.tokens:,}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if manifest.dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.dropped.items())
        console.print(f"Left out: {reasons} (see {output / DROPPED_FILE})", markup=False)
    console.print(f"{outcome}. Its vocabulary has {manifest.vocab_size:,} tokens.", markup=False)
