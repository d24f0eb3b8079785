"""Reading documents from files, and the messages about files that cannot be read."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard
from reading import texts

from lucid.errors import DataError
from lucid.preparation import read_documents
from lucid.preparation.inputs.python_docs import python_documents


def test_blank_lines_separate_the_documents_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeff\n\none\r\ntwo\r\n\r\n \t\nthree".encode())
    documents = list(read_documents([path]))
    assert [document.text for document in documents] == ["one\ntwo", "three"]
    assert [(document.source.path, document.line) for document in documents] == [(str(path), 3), (str(path), 7)]


def test_each_json_line_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n\\nstill one"}\n\n{"id": 3, "text": "zwölf"}\n', encoding="utf-8")
    assert texts(path) == ["one\n\nstill one", "zwölf"]


def test_compressed_files_read_like_plain_ones(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": "three"}).encode()))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(b"four\n") + zstandard.compress(b"\nfive\n"))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(json.dumps({"text": "six"}).encode()))
    assert texts(tmp_path) == ["one", "two", "three", "four", "five", "six"]


def test_a_folder_is_read_in_the_order_of_its_paths_without_other_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("c.txt", "a.txt", "b/z.txt", "notes.rst"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b/z.txt", "c.txt"]


def test_the_inputs_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in ("1.txt", "2.txt"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "2.txt", tmp_path / "1.txt") == ["2.txt", "1.txt"]


def test_a_text_without_blank_lines_is_cut_so_that_memory_stays_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lucid.preparation.inputs.plain_text._LONGEST_DOCUMENT", 10)
    (tmp_path / "a.txt").write_text("12345678\n" * 5)
    assert texts(tmp_path / "a.txt") == ["12345678\n12345678", "12345678\n12345678", "12345678"]


def test_the_documentation_of_python_is_a_corpus() -> None:
    documents = list(read_documents(["python-docs"]))
    assert len(documents) > 200
    assert sum(len(document.text) for document in documents) > 1_000_000


def test_the_documentation_of_python_covers_topics_and_modules_but_no_tests() -> None:
    names = {name for name, _ in python_documents()}
    assert {"topic assert", "argparse.py"} <= names
    assert not any("/test/" in name or "site-packages" in name for name in names)


def test_docstrings_are_read_without_running_the_module(tmp_path: Path) -> None:
    from lucid.preparation.inputs.python_docs import _docstrings

    source = (
        '"""Whole."""\nraise SystemExit\nif x:\n    class A:\n        """Class."""\n        async def f(): "Method."\n'
    )
    (tmp_path / "a.py").write_text(source + 'def g():\n    """Function."""\n    def h(): "Inner."\n')
    assert list(_docstrings(tmp_path / "a.py")) == ["Whole.", "Class.", "Method.", "Function.", "Inner."]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"good\nb\xffd\n", r"a\.txt:2: not UTF-8"),
        ("a.jsonl", b'{"text": "good"}\n{"text": \n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "good"}\n', r"a\.jsonl:1: no text"),
        ("a.jsonl", b'["text"]\n', r"a\.jsonl:1: no text"),
        ("a.jsonl", b'{"text": 3}\n', r"a\.jsonl:1: no text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl:1: half a surrogate pair"),
        (
            "a.txt.gz",
            gzip.compress(b"good\n" * 1000, mtime=0)[:-10],
            r"a\.txt\.gz:1: unreadable file \(Comp",
        ),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz:1: unreadable file \(Not a gzipped"),
        (
            "a.txt.zst",
            zstandard.compress(b"good\n" * 1000)[:-3],
            r"a\.txt\.zst:1: unreadable file \(",
        ),
        ("a.jsonl.zst", b"not zstandard", r"a\.jsonl\.zst:1: unreadable file \("),
        ("a.parquet", b"not a table", r"a\.parquet:1: unreadable file \("),
        ("a.txt", b"", r"a\.txt:1: empty document"),
        ("a.txt", b"good\n\nb\0d\n", r"a\.txt:3: NUL bytes"),
        ("a.jsonl", b'{"text": "b\\u0000d"}\n', r"a\.jsonl:1: NUL bytes"),
        ("a.jsonl", b'{"text": " "}\n', r"a\.jsonl:1: empty document"),
        ("a.rst", b"good", r"a\.rst' is of an unknown kind: use \.txt"),
        ("a.parquet.gz", b"good", r"a\.parquet\.gz' is of an unknown kind"),
        ("a.txt.xz", lzma.compress(b"good\n" * 1000)[:-3], r"a\.txt\.xz:1: unreadable file \(the file ends in the mid"),
        ("a.txt.xz", b"not xz", r"a\.txt\.xz:1: unreadable file \("),
        ("a.txt.bz2", bz2.compress(b"good\n" * 1000)[:-3], r"a\.txt\.bz2:1: unreadable file \(the file ends in the m"),
        ("a.txt.bz2", b"not bzip2", r"a\.txt\.bz2:1: unreadable file \("),
        ("a.csv", b"", r"a\.csv:1: no such column \('text' of --text-field; the table has none"),
        (
            "a.csv",
            b"id,body\n1,x\n",
            r"a\.csv:1: no such column \('text' of --text-field; the table has 'id', 'body'\): name one",
        ),
        (
            "a.tsv",
            b'id\t"body"\n1\tx\n',
            r"a\.tsv:1: no such column \('text' of --text-field; the table has 'id', 'body'\)",
        ),
        ("a.csv", "id,text\n1,x\n".encode("utf-16"), r"a\.csv:1: not UTF-8 \(it is UTF-16\): convert"),
        ("a.csv", "größe,art\n1,x\n".encode("latin-1"), r"a\.csv:1: not UTF-8 \(invalid .*\): convert"),
        ("a.csv", b"id,text\n1,good\n2\n", r"a\.csv:3: damaged row \(it has 1 cells of 2\)"),
        ("a.csv", b"id,text\n1,good\n2,x,y\n", r"a\.csv:3: damaged row \(it has 3 cells of 2\)"),
        ("a.csv", b'id,text\n1,"go\nod"\n2,"x" y\n', r"a\.csv:4: damaged row \("),
        ("a.csv", b'id,text\n1,good\n2,"x\n', r"a\.csv:3: damaged row \(a quote never closes"),
        ("a.csv", b"id,text\n1,good\n2,b\xffd\n", r"a\.csv:3: not UTF-8"),
        ("a.csv", b"id,text\n1,good\n2,\n", r"a\.csv:3: empty document: fill the cell"),
        ("a.tsv", b"id\ttext\n1\tb\0d\n", r"a\.tsv:2: NUL bytes"),
        ("a.csv", b"\x7fELF\0\0\n", r"a\.csv:1: NUL bytes: this may not be text"),
        ("a.html", b"<p>good\n<p>b\xffd", r"a\.html:2: not UTF-8"),
        (
            "a.html",
            b"<meta charset='latin-1'>b\xffd",
            r"a\.html:1: not UTF-8 \(invalid start byte; it .* latin-1\)",
        ),
        ("a.html", b"<script>x</script>", r"a\.html:1: empty document"),
        ("a.md", b"", r"a\.md:1: empty document"),
        ("a.md", b"good \0", r"a\.md:1: NUL bytes"),
        ("a.arrow", b"", r"a\.arrow:1: unreadable file \("),
        ("a.arrow", b"ARROW1 but no table", r"a\.arrow:1: unreadable file \("),
        ("a", b"\0\1\2", r"a' is neither text in UTF-8 nor a table"),
        ("a", lzma.compress(b"good")[:-3], r"a' cannot be read \(the file ends in the middle"),
    ],
)
def test_text_that_cannot_be_read_is_an_error_with_its_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name)


def test_missing_and_empty_inputs_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        texts(tmp_path / "nowhere.txt")
    with pytest.raises(DataError, match=r"holds no \.txt"):
        texts(tmp_path)
    with pytest.raises(DataError, match="no input was given"):
        texts()


def test_markup_is_dropped() -> None:
    from lucid.preparation.inputs.python_docs import _without_markup

    text = "Heading\n=======\n\n+----+----+\n| ab | cd |\n+----+----+\n>>> ``f(1)``\n   ...\nSee :py:class:`int`.\n"
    assert _without_markup(text) == "Heading\n\n| ab | cd |\n>>> f(1)\nSee `int`.\n"
