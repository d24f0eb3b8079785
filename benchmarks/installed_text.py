"""Collects the documentation that is installed on a machine, as a corpus for a trial without a download.

    python benchmarks/installed_text.py FOLDER... --output corpus.jsonl

Of all files below the folders these are read, one document a file: the docstrings of Python sources, and texts in
Markdown, reStructuredText and plain text (also compressed by gzip). Left out is what says little or cannot be read:
files with less than 400 characters, equal texts after the first, changelogs and licences, and files of which less than
seven tenths are letters and spaces.
"""

import argparse
import ast
import gzip
import json
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 400
TEXT = (".md", ".rst", ".txt")
LEFT_OUT = re.compile(r"change|licen[cs]e|copying|copyright|notice|authors|news|top_level|entry_points", re.IGNORECASE)
DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef


def files(folders: list[Path]) -> Iterator[Path]:
    """Yield every file below the folders, in the order of the names."""
    for folder in folders:
        for place, names, found in os.walk(folder):
            names.sort()
            yield from (Path(place, name) for name in sorted(found))


def text_of(path: Path) -> str:
    """Return what a file says, or nothing if it is of no use."""
    try:
        if path.suffix == ".py":
            return "\n\n".join(docstrings(path.read_text(encoding="utf-8")))
        inner = path.with_suffix("") if path.suffix == ".gz" else path
        if inner.suffix not in TEXT or LEFT_OUT.search(path.name):
            return ""
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8")
    except (OSError, ValueError, SyntaxError, RecursionError):
        return ""


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's sources
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield docstring


def is_prose(text: str) -> bool:
    """Return whether a text is long enough and of letters for the most part."""
    letters = sum(map(len, re.findall(r"[A-Za-z ]+", text)))
    return len(text) >= SHORTEST and letters >= 0.7 * len(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path)
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    seen: set[str] = set()
    size = 0
    with options.output.open("w", encoding="utf-8") as output:
        for text in map(text_of, files(options.folders)):
            if is_prose(text) and text not in seen:
                seen.add(text)
                size += len(text.encode())
                output.write(json.dumps({"text": text}) + "\n")
    print(f"{len(seen):,} documents, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
