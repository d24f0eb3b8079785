"""`lucid prepare`: turns text into a corpus for training."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lucid.cli.input_options import Format, TextFields
from lucid.cli.progress import progress_bar
from lucid.data import Manifest
from lucid.data.manifest import DROPPED_FILE, Split
from lucid.distributed.communicators.announcement import announced
from lucid.errors import LaunchError
from lucid.launch.limits import available_cores
from lucid.preparation import prepare as prepare_corpus
from lucid.preparation.saved_datasets import saved_splits
from lucid.preparation.vocabulary import SAMPLE_BYTES

# Places that the summary names for each reason to leave something out, and lines in which it looks for them.
_PLACES_SHOWN, _LINES_READ = 3, 100_000
# The share of unknown tokens from which the user is warned, and a document is named.
_MOST_UNKNOWN = 0.01


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
        int, typer.Option(min=1, max=1 << 20, help="MiB of the text on which the vocabulary is trained.")
    ] = SAMPLE_BYTES >> 20,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a BERT tokenizer to use instead: tokenizer.json or vocab.txt.", show_default=False
        ),
    ] = None,
    held_out: Annotated[float, typer.Option(help="Fraction of the documents kept for evaluation.")] = 0.05,
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
        bool, typer.Option("--drop-duplicates", help="Leave out documents whose text occurs before them.")
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
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first line that cannot be used.")] = False,
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
    """
    launch = announced()
    if launch is not None and (launch.size or 1) > 1:
        raise LaunchError(
            f"the launcher ({launch.launcher}) started {launch.size} processes, but lucid prepare starts its own: run "
            f"it once, with --processes {launch.size}, and without mpiexec (under SLURM with srun -n 1)"
        )
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
    _print_summary(manifest, output, bar.stage)
    for entry, names in splits.items():
        print(f"{entry} holds the splits {', '.join(names)}: all were read (name {Path(entry) / names[0]} to read one)")


def _print_summary(manifest: Manifest, output: Path, outcome: str) -> None:
    table = Table("split", "documents", "sentences", "tokens", "tokens/word", "[UNK]")
    for name, split in manifest.splits.items():
        counts = [f"{count:,}" for count in (split.documents, split.sentences, split.tokens)]
        table.add_row(name, *counts, *_coverage(split))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if manifest.dropped:
        first = _first_places(output / DROPPED_FILE)
        console.print(f"Left out (see {output / DROPPED_FILE}):", markup=False)
        for reason, count in manifest.dropped.items():
            places = f", such as {', '.join(first[reason])}" if reason in first else ""
            console.print(f"  {count:,} {reason}{places}", markup=False)
    if places := _least_known(manifest):
        console.print(f"Documents with the largest share of [UNK]: {places}", markup=False)
    if "normalisation" in manifest.made_from:
        console.print(_normalisation(manifest.made_from), markup=False)
    console.print(f"{outcome}. Its vocabulary has {manifest.vocab_size:,} tokens.", markup=False)
    if any(split.unknown > _MOST_UNKNOWN * split.tokens for split in manifest.splits.values()):
        Console(stderr=True, soft_wrap=True, highlight=False).print(_warning(manifest), markup=False)


def _coverage(split: Split) -> tuple[str, str]:
    """Return the tokens of a word and the share of unknown ones, "?" in a corpus for which they were not counted."""
    if not split.words:
        return "?", "?"
    return f"{split.tokens / split.words:.2f}", f"{split.unknown / split.tokens:.2%}"


def _least_known(manifest: Manifest) -> str:
    """Return the documents with the largest shares of unknown tokens, and these."""
    found = [document for split in manifest.splits.values() for document in split.least_known]
    found.sort(key=lambda document: -document.unknown / document.tokens)
    places = [
        f"{manifest.made_from['inputs'][document.source]['name']}:{document.line} ({share:.0%})"
        for document in found[:_PLACES_SHOWN]
        if (share := document.unknown / document.tokens) > _MOST_UNKNOWN
    ]
    return ", ".join(places)


def _warning(manifest: Manifest) -> str:
    """Return a warning that many tokens are unknown, with what to do about it."""
    shares = ", and ".join(
        f"{split.unknown / split.tokens:.1%} of the tokens of {name}"
        for name, split in manifest.splits.items()
        if split.unknown
    )
    if manifest.made_from["tokenizer"] is not None:
        advice = (
            "this tokenizer is made for other text; leave out --tokenizer to train one, or take one of this language"
        )
    elif manifest.made_from.get("alphabet"):
        advice = f"its alphabet is too small; raise --alphabet (now {manifest.made_from['alphabet']:,})"
    else:
        advice = f"its vocabulary is too small; raise --vocab-size (now {manifest.made_from['vocab_size']:,})"
    return f"warning: {shares} are [UNK], so a model learns nothing of the words behind them: {advice}"


def _normalisation(made_from: Mapping[str, Any]) -> str:
    """Return how the tokenizer was chosen to normalise text, and the options that change the choice."""
    chosen = made_from["normalisation"]
    case = "--uncased" if ": cased" in chosen else "--cased"
    accents = "--strip-accents" if "accents kept" in chosen else "--keep-accents"
    free = [option for option, name in ((case, "case"), (accents, "accents")) if made_from.get(name) is None]
    return f"{chosen} (or {', '.join(free)})" if free else str(chosen)


def _first_places(path: Path) -> dict[str, list[str]]:
    """Return the first places where something was left out for each reason, with its details if there are any."""
    first: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in islice(file, _LINES_READ):
            place, *others = line.rstrip("\n").split("\t")
            if not others:  # an earlier version wrote the end of a line that a file's name has
                continue
            reason, *details = others
            places = first.setdefault(reason, [])
            if len(places) < _PLACES_SHOWN:
                places.append(f"{place} ({details[0]})" if details else place)
    return first
