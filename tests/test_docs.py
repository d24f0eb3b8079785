"""The documents are whole, and the files that they name exist."""

import re
from pathlib import Path

import pytest
from isolation import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
# A path in backticks. Those with capitals or dots in folders' names stand for what users have.
NAMED = re.compile(r"`((?:lucid|tests|benchmarks|docs|configs|launch|slurm)/[a-z0-9_./-]+)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_names_is_there(document: Path) -> None:
    named = set(NAMED.findall(document.read_text()))
    # Each cluster makes this one from the example.
    assert {path for path in named if not (REPOSITORY / path).exists()} <= {"slurm/site.env"}


def test_the_architecture_names_files() -> None:
    assert len(NAMED.findall((REPOSITORY / "docs" / "architecture.md").read_text())) > 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_has_a_gap_to_be_filled(document: Path) -> None:
    assert re.findall(r"^[A-Z]+$|\b(?:TODO|FIXME|XXX)\b", document.read_text(), re.MULTILINE) == []
