"""Makes a task of real text: from which part of Python's documentation does a paragraph come?

    python benchmarks/python_docs_task.py FOLDER

writes `train.tsv` and `test.tsv`, with the columns `text` and `label`. The parts are the language reference and the
packages of the standard library with the most paragraphs, eight in all. One paragraph in four is to train on, one to
test on, and a paragraph that occurs twice is left out.
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
    for quarter, name in enumerate(("train", "test")):
        rows = [(text, part) for text, part in kept if sha256(text.encode()).digest()[0] % 4 == quarter]
        lines = ["text\tlabel", *(f"{text}\t{part}" for text, part in rows)]
        (folder / f"{name}.tsv").write_text("".join(f"{line}\n" for line in lines))
        print(f"{folder / name}.tsv: {len(rows):,} paragraphs; {dict(Counter(part for _, part in rows).most_common())}")


def part_of(name: str) -> str:
    """Return the part that a document belongs to: a package, a module, or the language reference."""
    return "language reference" if name.startswith("topic ") else name.partition("/")[0].removesuffix(".py")


def paragraphs_of(document: str) -> list[str]:
    texts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", document))
    return [text for text in texts if SHORTEST <= len(text) <= LONGEST]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
