"""Files of every kind: how their lines end, how their names are spelt, how they are packed, and those passed over."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path

import pytest
import typer
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lucid.cli.prepare import prepare as prepare_command
from lucid.errors import DataError
from lucid.preparation import prepare, read_documents
from lucid.preparation.inputs.documents import Reader, scan
from lucid.preparation.inputs.omissions import refuse
from lucid.preparation.inputs.pieces import pieces_of
from lucid.preparation.inputs.sources import find_sources

GOOD = "\n\n".join(f"Document {number} says this. It is not long. It ends." for number in range(9))
PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def documents(path: Path) -> list[str]:
    return [document.text for document in read_documents([path])]


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
    "text",
    [
        "one\ntwo\n\nthree\n",
        "one\rtwo\r\rthree\r",
        "one\r\ntwo\r\n\r\nthree\r\n",
        "one\r\r\ntwo\r\r\n\r\r\nthree",
        "one\rtwo\r\n\rthree\n",
        "one\x85two\x85\x85three",
        "one\u2028two\u2028\u2028three",
        "one\rtwo\u2029\n\x85three",
    ],
)
def test_lines_may_end_in_any_way(tmp_path: Path, text: str, suffix: str) -> None:
    (tmp_path / f"a.txt{suffix}").write_bytes(PACKED[suffix](text.encode()))
    assert documents(tmp_path / f"a.txt{suffix}") == ["one\ntwo", "three"]


def test_records_may_end_with_carriage_returns_and_hold_other_ends(tmp_path: Path) -> None:
    texts = ["one\u2028two", "three\x85four\r\n"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\r".join(lines).encode())
    assert documents(tmp_path / "a.jsonl") == texts


def test_a_long_file_of_carriage_returns_is_cut_between_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a few words here\rand there\r\r" * 1000)
    ((source,), _) = find_sources([path])
    pieces = pieces_of(source, scan(source, 5000, whole_files=False), refuse)
    assert len(pieces) > 4
    found = [document for piece in pieces for document in Reader().documents(piece, refuse)]
    assert [document.text for document in found] == ["a few words here\nand there"] * 1000
    assert [document.line for document in found] == list(range(1, 3001, 3))


@settings(max_examples=40)
@given(text=st.text("ab\r\n", max_size=300), size=st.integers(1, 40))
def test_line_ends_do_not_depend_on_where_a_file_is_read(
    tmp_path_factory: pytest.TempPathFactory, text: str, size: int
) -> None:
    path = tmp_path_factory.mktemp("ends") / "a.jsonl"
    path.write_bytes(text.encode())
    ((source,), _) = find_sources([path])
    reader, dropped = Reader(), []
    for piece in pieces_of(source, scan(source, size, whole_files=False), lambda *fault: None):
        list(reader.documents(piece, lambda source, line, *reason: dropped.append(line)))
    reader.close()
    lines = re.split(r"\n|\r(?!\r?\n)", text)
    assert dropped == [number for number, line in enumerate(lines, start=1) if line.strip()]


@pytest.mark.parametrize("name", ["A.TXT", "b.Txt.GZ", "c.TXT.zst"])
def test_suffixes_may_be_in_upper_case(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[name[5:].lower()](b"one\n\ntwo"))
    assert documents(tmp_path / name) == documents(tmp_path) == ["one", "two"]


def test_records_may_have_suffixes_in_upper_case(tmp_path: Path) -> None:
    (tmp_path / "A.JSONL.GZ").write_bytes(gzip.compress(b'{"text": "one"}'))
    assert documents(tmp_path) == ["one"]


def test_a_zstandard_file_that_takes_too_much_memory_is_left_out_with_advice(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    content = zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(b"one\n" * 100_000)
    (tmp_path / "a.txt.zst").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.txt\.zst:1: unreadable .*128 MiB of memory; pack it again: zstd -d --long"
    ):
        documents(tmp_path)


def test_an_xz_file_that_takes_too_much_memory_is_left_out_with_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one\n" * 1000))
    assert len(documents(tmp_path)) == 1
    monkeypatch.setattr("lucid.unpacking._WINDOW", 1 << 20)
    with pytest.raises(DataError, match=r"a\.txt\.xz:1: unreadable .* of memory; pack it again: xz -dc OLD \| xz -9"):
        documents(tmp_path)


def test_packed_files_may_follow_each_other_in_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one\n\nt") + bytes(8) + lzma.compress(b"wo\n") + bytes(4))
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(b"three\n\nf") + bz2.compress(b"our"))
    assert documents(tmp_path) == ["one", "two", "three", "four"]


def test_a_zstandard_file_with_the_longest_usual_window_is_read(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    (tmp_path / "a.txt.zst").write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(b"one"))
    assert documents(tmp_path) == ["one"]


def test_files_of_other_kinds_are_counted_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    (folder / "below").mkdir(parents=True)
    (folder / "a.txt").write_text(GOOD)
    for name in ("notes.rst", "below/b.pdf", "c.docx", "d.log", ".hidden"):
        (folder / name).write_text("x")
    application = typer.Typer()
    application.command()(prepare_command)
    arguments = [str(folder), "--output", str(tmp_path / "corpus"), "--vocab-size", "100"]
    finished = CliRunner().invoke(application, arguments)
    assert "4 another kind of file, such as below/b.pdf, c.docx, d.log\n" in finished.output
    assert (tmp_path / "corpus" / "dropped.txt").read_text().splitlines()[-1] == "notes.rst\tanother kind of file"


def test_a_folder_without_text_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.rst").write_text("x")
    with pytest.raises(DataError, match=r"holds no \.txt, .* file, but 1 of other kinds, such as notes\.rst$"):
        documents(tmp_path)
    (tmp_path / "README").write_text("x")
    with pytest.raises(
        DataError, match=r"such as README, notes\.rst: say with --format what files without a suffix are"
    ):
        documents(tmp_path)


SAME, SHORT = "The same text. It is long enough.\n\n", "a\n\n"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            SAME * 50,
            {"drop_duplicates": True},
            r"\(0 of 50\): 49 are duplicates, which were left out, 1 are in held_out",
        ),
        (SAME * 50, {}, r"\(0 of 50\): 50 are in held_out, only 1 differ, and equal ones go into one split: add other"),
        (SHORT * 50, {}, r"\(0 of 50\): 50 have fewer than two tokens: add other text"),
        (SAME + SHORT * 9, {"held_out": 0}, r"\(1 of 10\): 9 have fewer than two tokens: add other text"),
        (
            "\n\n".join(f"{letter}\nThe same text." for letter in "abcdefghi"),
            {"drop_repeated_lines": 8},
            r"\(0 of 9\): 9 have fewer than two tokens, 9 repeated lines .*, or change --drop-repeated-lines or --held",
        ),
        (SAME, {}, r"the input holds 1 document that can be used, and pretraining needs two or more"),
    ],
    ids=["duplicates", "equal", "short", "nearly all short", "repeated lines", "one"],
)
def test_an_empty_split_says_why(tmp_path: Path, text: str, options: dict[str, object], message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=64, **options)  # type: ignore[arg-type]
