"""Makes a task of real text: from which part of Python's documentation does a paragraph come?

    python benchmarks/python_docs_task.py FOLDER

writes `train.tsv`, `test.tsv`, `few.tsv` and `validation.tsv`, with the columns `text` and `label`. The parts are the
language reference and the packages of the standard library with the most paragraphs, eight in all. One paragraph in
four is to train on, one to test on, and a paragraph that occurs twice is left out.

`few.tsv` holds a fifth of the training paragraphs, for a task with few labels. `validation.tsv` holds the others, to
choose a learning rate on.
"""

import re
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path

from lucid.preparation.inputs.python_docs import python_documents

PARTS = 8
SHORTEST, LONGEST = 60, 1000  # characters


def main(folder: Path) -> None:
    paragraphs = [(text, part_of(name)) for name, document in python_documents() for text in paragraphs_of(document)]
    occurs, sizes = Counter(text for text, _ in paragraphs), Counter(part for _, part in paragraphs)
    parts = {part for part, _ in sizes.most_common(PARTS)}
    kept = [(text, part) for text, part in paragraphs if part in parts and occurs[text] == 1]
    folder.mkdir(parents=True, exist_ok=True)
    train, test = ([row for row in kept if draw(row, 0, 4) == quarter] for quarter in (0, 1))
    few, validation = ([row for row in train if (draw(row, 1, 5) == 0) is chosen] for chosen in (True, False))
    for name, rows in {"train": train, "test": test, "few": few, "validation": validation}.items():
        lines = ["text\tlabel", *map("\t".join, rows)]
        (folder / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))
        print(f"{folder / name}.tsv: {len(rows):,} paragraphs; {dict(Counter(part for _, part in rows).most_common())}")


def draw(row: tuple[str, str], place: int, parts: int) -> int:
    """Return a number below `parts` that depends on the text alone, and differs from place to place."""
    return sha256(row[0].encode()).digest()[place] % parts


def part_of(name: str) -> str:
    """Return the part that a document belongs to: a package, a module, or the language reference."""
    return "language reference" if name.startswith("topic ") else name.partition("/")[0].removesuffix(".py")


def paragraphs_of(document: str) -> list[str]:
    texts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", document))
    return [text for text in texts if SHORTEST <= len(text) <= LONGEST]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
