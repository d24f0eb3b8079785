"""The kinds of files that a corpus is made of: by the suffix of a name, or by the content where a name has none."""

import codecs
import re
from pathlib import Path

from lucid.files import PACKINGS, open_file, split_packing
from lucid.json_values import parse_json
from lucid.unpacking import unpacked

TEXT, JSON_LINES, CSV, TSV, MARKDOWN, HTML = ".txt", ".jsonl", ".csv", ".tsv", ".md", ".html"
PARQUET, ARROW = ".parquet", ".arrow"
PYTHON_DOCS = "python-docs"
# The kinds that may be compressed, and that `--format` names without their dots.
TEXT_KINDS = (TEXT, JSON_LINES, CSV, TSV, MARKDOWN, HTML)
# The kinds that need pyarrow, and whose records are counted as rows instead of lines.
TABLES = (PARQUET, ARROW)
# The kinds that may hold token ids.
ID_KINDS = (JSON_LINES, *TABLES)
KNOWN = f"{', '.join(TEXT_KINDS)} (also {', '.join(PACKINGS)}), {', '.join(TABLES)}"

_KINDS = {kind: kind for kind in (*TEXT_KINDS, *TABLES)} | {".htm": HTML}
# Bytes by which a file is recognised.
_HEAD = 1 << 16
_SIGNATURES = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ".bz2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),  # of a block, or of the end: a text may begin with BZh
}
_HTML_START = re.compile(r"(?:<\?xml[^>]*>\s*)?(?:<!doctype\s+html|<html\b)", re.IGNORECASE)


def kind_by_name(name: str) -> tuple[str | None, str]:
    """Return the kind and the packing that a file's name tells.

    The kind is "" for a name without a suffix, and None for one with an unknown suffix. The packing is one of
    `PACKINGS`, or "". Suffixes may be in upper case.
    """
    unpacked_name, packing = split_packing(Path(name.lower()))
    suffix = unpacked_name.suffix
    kind = _KINDS.get(suffix) if suffix else ""
    return (None, "") if packing and kind in TABLES else (kind, packing)


def kind_by_content(path: Path, said: str | None = None) -> tuple[str | None, str]:
    """Return the kind and the packing that the first bytes of a file tell. The kind is None if they are no text.

    A file whose first line is a JSON object is JSON lines, other text is plain text unless it begins as HTML.
    CSV and Markdown look like plain text. If the kind is `said`, without its dot, only the packing is found. Raises one
    of `READ_ERRORS` if the file cannot be read.
    """
    with open_file(path) as file:
        head = file.read(_HEAD)
        if said is not None:
            return f".{said}", packing_by_content(head)
        if head.startswith((b"PAR1", b"ARROW1")):
            return (PARQUET if head.startswith(b"PAR1") else ARROW), ""
        packing = packing_by_content(head)
        if packing:
            file.seek(0)
            head = unpacked(file, packing).read(_HEAD)
    return _kind_of_text(head), packing


def packing_by_content(head: bytes) -> str:
    """Return the packing of a file that begins with the bytes `head`; "" if it is none of `PACKINGS`."""
    return next((packing for packing, signature in _SIGNATURES.items() if signature.match(head)), "")


def _kind_of_text(head: bytes) -> str | None:
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).lstrip()
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    first, end, _ = text.partition("\n")
    if first.startswith("{") and (_is_object(first) or (not end and len(head) == _HEAD)):
        return JSON_LINES
    return HTML if _HTML_START.match(text) else TEXT


def _is_object(line: str) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False
