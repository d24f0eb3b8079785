"""What inputs of a corpus hold, and what of them is left out."""

from pathlib import Path

from lucid.preparation import read_documents


def texts(*inputs: str | Path, **choice: object) -> list[str]:
    """Return the texts of all documents."""
    return [document.text for document in read_documents(inputs, **choice)]  # type: ignore[arg-type]


def left_out(path: Path, **choice: object) -> list[tuple[int, str]]:
    """Return the line and the reason of everything that is left out."""
    found: list[tuple[int, str]] = []
    list(read_documents([path], drop=lambda _, line, reason, __: found.append((line, reason)), **choice))  # type: ignore[arg-type]
    return found
