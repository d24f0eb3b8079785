"""HTML elements as text, all of whose content is escaped."""

from collections.abc import Iterator
from html import escape

from lucid.analysis.report.tables import Table

# Characters of a cell that stays on one line.
_SHORT = 24


def text(content: str) -> str:
    """Return text for a page: control characters, which HTML cannot have, become question marks."""
    return escape("".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in content))


def element(name: str, *content: str, **attributes: str) -> str:
    """Return an element with attributes, of which `kind` is the class, around content that is HTML already."""
    classes = {"class": attributes.pop("kind")} if attributes.get("kind") else {}
    attributes.pop("kind", None)
    given = "".join(f' {key}="{text(value)}"' for key, value in (classes | attributes).items())
    return f"<{name}{given}>{''.join(content)}</{name}>"


def paragraph(content: str, kind: str = "") -> str:
    """Return a paragraph of text."""
    return element("p", text(content), kind=kind)


def listed(items: list[str]) -> str:
    """Return a list of texts."""
    return element("ul", *(element("li", text(item)) for item in items))


def table_of(table: Table, kind: str = "") -> Iterator[str]:
    """Yield a table, nothing if it has no rows. Of kind "facts", its first column has the headings of rows."""
    if not table.rows:
        return
    numbers = ["number" if table.is_numeric(column) and not kind else "" for column in range(len(table.columns))]
    head = [
        element("th", text(name), scope="col", kind=number) for name, number in zip(table.columns, numbers, strict=True)
    ]
    rows = []
    for row in table.rows:
        kinds = [number or "short" * (len(cell) <= _SHORT) for cell, number in zip(row, numbers, strict=True)]
        cells = [element("td", text(cell), kind=each) for cell, each in zip(row, kinds, strict=True)]
        if kind == "facts":
            cells[0] = element("th", text(row[0]), scope="row")
        rows.append(element("tr", *cells))
    heading = [element("thead", element("tr", *head))] if any(table.columns) else []
    yield element("div", element("table", *heading, element("tbody", *rows), kind=kind), kind="wide")
