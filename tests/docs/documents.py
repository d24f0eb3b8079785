"""The documents of the repository, read as Markdown: their links, headings and code."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
from isolation import REPOSITORY
from markdown_it import MarkdownIt
from markdown_it.token import Token

DOCS = REPOSITORY / "docs"
# The pages of the site. Two of them only include a document of the top.
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + PAGES

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY).with_suffix(""))
)


@dataclass
class Document:
    """What a document has: targets of links and images, anchors of headings, blocks of code, and code in sentences."""

    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    blocks: list[str] = field(default_factory=list)
    spans: list[str] = field(default_factory=list)


@cache
def read(path: Path) -> Document:
    """Return what the document at `path` has."""
    document = Document()
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    for place, token in enumerate(tokens):
        if token.type in ("fence", "code_block"):
            document.blocks.append(token.content)
        for inner in token.children or ():
            if inner.type in ("link_open", "image"):
                document.links.append(str(inner.attrs.get("href") or inner.attrs["src"]))
            if inner.type == "code_inline":
                document.spans.append(inner.content)
        if token.type == "heading_open":
            anchor = _anchor(tokens[place + 1])
            repeated = sum(
                re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in document.anchors
            )
            document.anchors.add(f"{anchor}-{repeated}" if repeated else anchor)
    return document


def _anchor(heading: Token) -> str:
    """Return the anchor that GitHub and the site give a heading."""
    text = "".join(inner.content for inner in heading.children or ())
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def command_lines(path: Path) -> Iterator[str]:
    """Yield what a document tells its reader to type, one command a line."""
    document = read(path)
    for text in (*document.blocks, *document.spans):
        for line in text.replace("\\\n", " ").splitlines():
            yield from line.strip().removeprefix("$ ").split(" && ")
