"""`lucid prepare`: makes a corpus for training out of text."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lucid.data import Manifest
from lucid.data import prepare as prepare_corpus


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files or folders of .txt (a blank line separates documents) and .jsonl (field 'text'), also .gz; "
            "or python-docs, the documentation of this Python.",
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another corpus in the folder.")] = False,
) -> None:
    """Prepare a corpus: split text into sentences, tokenize them, and write shards that training reads.

    Run again with the same inputs and options, it sees that the corpus is there and does nothing.

    Examples:

        lucid prepare python-docs --output data/python-docs --vocab-size 4096

        lucid prepare books/ news.jsonl.gz --output data/mine

        lucid prepare notes/ --output data/notes --tokenizer models/bert-base-uncased
    """
    outcome = ""
    # Progress goes to standard error, the summary to standard output.
    with Console(stderr=True).status("starting") as status:

        def report(message: str) -> None:
            nonlocal outcome
            outcome = message
            status.update(message)

        manifest = prepare_corpus(
            inputs,
            output,
            vocab_size=vocab_size,
            tokenizer=tokenizer,
            held_out=held_out,
            overwrite=overwrite,
            report=report,
        )
    _print_summary(manifest, outcome)


def _print_summary(manifest: Manifest, outcome: str) -> None:
    table = Table("split", "documents", "sentences", "tokens", "dropped documents")
    for name, split in manifest.splits.items():
        dropped = ", ".join(f"{count:,} ({reason})" for reason, count in split.dropped.items())
        table.add_row(name, f"{split.documents:,}", f"{split.sentences:,}", f"{split.tokens:,}", dropped or "none")
    console = Console()
    console.print(table)
    console.print(f"{outcome}. Its vocabulary has {manifest.vocab_size:,} tokens.", soft_wrap=True, highlight=False)
