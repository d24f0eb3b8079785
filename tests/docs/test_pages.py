"""The documents are whole: what they link to and name is there, and the site has every page once."""

import importlib.util
import re
from pathlib import Path

from documents import DOCS, DOCUMENTS, PAGES, each_document, read
from isolation import REPOSITORY

# A path in backticks. Those with capitals or dots in folders' names stand for what users have.
NAMED = re.compile(r"`((?:lucid|tests|benchmarks|docs|configs|launch|slurm|examples)/[a-z0-9_./-]+)`")


@each_document
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    named = set(NAMED.findall(document.read_text()))
    # Each cluster makes the first from the example, and `make docs` the second.
    made = {"slurm/site.env", "docs/_build/html/index.html"}
    assert {path for path in named if not (REPOSITORY / path).exists()} <= made


def test_the_architecture_names_files() -> None:
    assert len(NAMED.findall((DOCS / "architecture.md").read_text())) > 20


@each_document
def test_no_document_has_a_gap_to_be_filled(document: Path) -> None:
    assert re.findall(r"^[A-Z]+$|\b(?:TODO|FIXME|XXX)\b", document.read_text(), re.MULTILINE) == []


@each_document
def test_links_lead_to_files_and_headings_that_are_there(document: Path) -> None:
    for link in read(document).links:
        if re.match("[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name} links to {link}, which is not there"
        if anchor:
            assert anchor in read(target).anchors, f"{document.name} links to {link}, but there is no such heading"


def test_documents_link_to_each_other() -> None:
    assert sum("#" in link for document in DOCUMENTS for link in read(document).links) > 10


def test_every_page_stands_once_in_the_contents_of_the_site() -> None:
    specification = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    assert specification is not None
    assert specification.loader is not None
    configuration = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(configuration)
    listed = [
        (page.parent / path).relative_to(DOCS)
        for page in PAGES
        if page.name == "index.md"
        for _, pages in configuration.contents(page.read_text())
        for _, path in pages
    ]
    there = {page.relative_to(DOCS).with_suffix("") for page in (*PAGES, *DOCS.rglob("*.rst"))} - {Path("index")}
    assert len(listed) == len(set(listed))
    assert set(listed) == there
