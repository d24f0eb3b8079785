"""What docs/troubleshooting.md quotes is what lucid says."""

import re
from functools import cache

import pytest
from documents import DOCS, read
from isolation import REPOSITORY

PAGE = DOCS / "troubleshooting.md"
# What others say: the operating system.
OF_OTHERS = re.compile("No space left on device")


@cache
def sources() -> str:
    """The text of all strings of lucid and its job scripts, across the lines of the code, without their variables."""
    files = [*(REPOSITORY / "lucid").rglob("*.py"), *(REPOSITORY / "slurm").glob("*.sh")]
    text = "\n".join(path.read_text() for path in files)
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"(?:\{[^{}]*\}|\$\w+)+", "…", text)


def pieces(message: str) -> list[str]:
    """The parts of a message between punctuation and what differs from run to run: the code may compose them."""
    text = OF_OTHERS.sub("…", " ".join(message.split()))
    return [piece.strip() for piece in re.split(r"[…,;:()/']|\d+|\. |\.{3}", text) if re.search(r"[a-z]{3}", piece)]


@pytest.mark.parametrize("message", read(PAGE).blocks, ids=lambda message: message[:40].replace("/", " "))
def test_a_message_is_one_of_the_code(message: str) -> None:
    for piece in pieces(message):
        assert piece in sources(), f"nothing says {piece!r}"


def test_there_are_twelve_symptoms_or_more() -> None:
    assert len(read(PAGE).blocks) >= 12
    assert PAGE.read_text().count("\n## ") >= 12
