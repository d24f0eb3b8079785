"""`lucid prepare`: turns text into a corpus for training."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.corpus_summary import print_summary
from lucid.cli.input_options import Format, TextFields
from lucid.cli.progress import progress_bar
from lucid.distributed.communicators.announcement import check_started_once
from lucid.launch.limits import available_cores
from lucid.preparation import prepare as prepare_corpus
from lucid.preparation.inputs.saved_datasets import saved_splits
from lucid.preparation.selection import HELD_OUT_FRACTION
from lucid.preparation.text_sample import SAMPLE_BYTES


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files or folders of .txt (a blank line separates documents), .jsonl, .csv, .tsv, .md and .html, all "
            "also as .gz, .zst, .xz and .bz2, and of .parquet and .arrow; - is the standard input, and python-docs the "
            "documentation of this Python.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the corpus.", show_default=False)],
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary that is trained.")] = 30522,
    cased: Annotated[
        bool | None,
        typer.Option(
            "--cased/--uncased",
            help="Tell capital letters from small ones, or not. Default: uncased for text like English.",
            show_default=False,
        ),
    ] = None,
    keep_accents: Annotated[
        bool | None,
        typer.Option(
            "--keep-accents/--strip-accents",
            help="Tell letters with accents and vowel signs from those without, or not. Default: strip them in text "
            "like English.",
            show_default=False,
        ),
    ] = None,
    alphabet: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Characters of the vocabulary at the most. Default: as many as the text needs.",
            show_default=False,
        ),
    ] = None,
    tokenizer_sample: Annotated[
        int,
        typer.Option(metavar="MIB", min=1, max=1 << 20, help="MiB of the text on which the vocabulary is trained."),
    ] = SAMPLE_BYTES >> 20,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a BERT tokenizer to use instead: tokenizer.json or vocab.txt.", show_default=False
        ),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Fraction of the documents kept for evaluation.")] = (
        HELD_OUT_FRACTION
    ),
    text_field: TextFields = ["text"],  # noqa: B006 (typer reads it)
    ids_field: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            help="Field of .jsonl, or column of .parquet or .arrow, with token ids to take in place of text. They are "
            "numbers of the vocabulary of --tokenizer.",
            show_default=False,
        ),
    ] = None,
    kind: Format = None,
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="Each .txt is one document, with or without blank lines.")
    ] = False,
    language: Annotated[
        str, typer.Option(help="Language of the text, such as de or German: its abbreviations end no sentence.")
    ] = "en",
    drop_duplicates: Annotated[
        bool, typer.Option("--drop-duplicates", help="Leave out a document if the same text occurs before it.")
    ] = False,
    drop_repeated_lines: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Leave out lines that stand in more than N documents, such as menus and footers.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first input that cannot be used.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that share the work. Default: one for each core.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another corpus in the folder.")] = False,
) -> None:
    """Prepare a corpus: split text into sentences, tokenize them, and write shards that training reads.

    Run the same command again to resume an interrupted preparation. If the corpus exists, the command does nothing. It
    runs on one machine, and the corpus does not depend on the number of processes.

    Examples:

        lucid prepare python-docs --output data/python-docs --vocab-size 4096

        lucid prepare books/ news.jsonl.gz --output data/mine

        lucid prepare notes/ --output data/notes --tokenizer models/bert-base

        lucid prepare pages/ --output data/pages --drop-repeated-lines 20

        lucid prepare reviews.csv --text-field review --output data/reviews
    """
    check_started_once("prepare")
    splits = {entry: names for entry in inputs if (names := saved_splits(Path(entry)))}
    with progress_bar() as bar:
        manifest = prepare_corpus(
            inputs,
            output,
            vocab_size=vocab_size,
            cased=cased,
            keep_accents=keep_accents,
            alphabet=alphabet,
            sample_bytes=tokenizer_sample << 20,
            tokenizer=tokenizer,
            held_out=held_out,
            text_field=text_field,
            ids_field=ids_field,
            kind=kind,
            whole_files=whole_files,
            language=language,
            drop_duplicates=drop_duplicates,
            drop_repeated_lines=drop_repeated_lines,
            strict=strict,
            overwrite=overwrite,
            processes=processes or available_cores(),
            report=bar,
            warn=bar.warn,
        )
    print_summary(manifest, output, bar.stage)
    for entry, names in splits.items():
        print(f"{entry} holds the splits {', '.join(names)}: all were read (name {Path(entry) / names[0]} to read one)")
