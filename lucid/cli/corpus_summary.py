"""What `lucid prepare` says of a corpus when it is made: its size, what was left out, and how its tokenizer fits."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lucid.data import Manifest
from lucid.data.manifest import DROPPED_FILE, TOKENIZER_FOLDER, Split
from lucid.data.tokenizer import load_tokenizer
from lucid.output import table_width
from lucid.preparation.vocabulary import limit_of_characters

# Places that the summary names for each reason to leave something out, and lines in which it looks for them.
_PLACES_SHOWN, _LINES_READ = 3, 100_000
# The share of unknown tokens from which the user is warned, and a document is named.
_MOST_UNKNOWN = 0.01


def print_summary(manifest: Manifest, output: Path, outcome: str) -> None:
    """Print a summary of the corpus in the folder `output`, and what has become of the folder, the `outcome`."""
    table = Table("split", "documents", "sentences", "tokens", "tokens/word", "[UNK]")
    for name, split in manifest.splits.items():
        counts = [f"{count:,}" for count in (split.documents, split.sentences, split.tokens)]
        table.add_row(name, *counts, *_coverage(split))
    console = Console(width=table_width(), soft_wrap=True, highlight=False)
    console.print(table)
    if manifest.made_from.get("held_out_more"):
        console.print(
            f"--held-out {manifest.made_from['held_out']:g} selects too few of these documents, so more are held out. "
            "Another corpus may train on the same texts.",
            markup=False,
        )
    if manifest.dropped:
        first = _first_places(output / DROPPED_FILE)
        console.print(f"Left out (see {output / DROPPED_FILE}):", markup=False)
        for reason, count in manifest.dropped.items():
            places = f", such as {', '.join(first[reason])}" if reason in first else ""
            console.print(f"  {count:,} {reason}{places}", markup=False)
    if places := _least_known(manifest):
        console.print(f"Documents with the largest share of [UNK]: {places}", markup=False)
    if "normalisation" in manifest.made_from:
        console.print(_normalisation(manifest.made_from, output), markup=False)
    console.print(f"{outcome}. Its vocabulary has {manifest.vocab_size:,} tokens.", markup=False)
    if any(split.unknown > _MOST_UNKNOWN * split.tokens for split in manifest.splits.values()):
        Console(stderr=True, soft_wrap=True, highlight=False).print(_warning(manifest, output), markup=False)


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


def _warning(manifest: Manifest, output: Path) -> str:
    """Return a warning that many tokens are unknown, with what to do about it."""
    shares = ", and ".join(
        f"{split.unknown / split.tokens:.1%} of the tokens of {name}"
        for name, split in manifest.splits.items()
        if split.unknown
    )
    made_from, tokenizer = manifest.made_from, load_tokenizer(output / TOKENIZER_FOLDER)
    longest = tokenizer.model.max_input_chars_per_word
    if made_from.get("ids_field") is not None:
        advice = "what made the ids has too small a vocabulary, or was made for other text"
    elif made_from.get("tokenizer"):
        advice = (
            "this tokenizer is made for other text; leave out --tokenizer to train one, or take one of this language "
            f"(unless the words have more than {longest} characters: it knows none of those)"
        )
    elif limit := limit_of_characters(tokenizer, made_from["vocab_size"], made_from.get("alphabet")):
        advice = f"it has too few characters; raise {limit}"
    else:
        advice = (
            f"they have more than {longest} characters, or some that are rare in this text; put spaces between words"
        )
    return f"warning: {shares} are [UNK], so a model learns nothing about the words behind them: {advice}"


def _normalisation(made_from: Mapping[str, Any], output: Path) -> str:
    """Return how the tokenizer was chosen to normalise text, and the options that change the choice."""
    normalizer = load_tokenizer(output / TOKENIZER_FOLDER).normalizer
    strips = normalizer.lowercase if normalizer.strip_accents is None else normalizer.strip_accents
    case = "--cased" if normalizer.lowercase else "--uncased"
    accents = "--keep-accents" if strips else "--strip-accents"
    free = [option for option, name in ((case, "case"), (accents, "accents")) if made_from.get(name) is None]
    return f"{made_from['normalisation']} (or {', '.join(free)})" if free else str(made_from["normalisation"])


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
