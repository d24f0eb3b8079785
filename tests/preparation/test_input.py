"""Which documents a corpus has: bad input is left out and reported, duplicates and other fields on request."""

import errno
import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from lucid.data import Manifest, load_tokenizer
from lucid.errors import DataError
from lucid.files import replacing
from lucid.preparation import Document, prepare, read_documents, stages, vocabulary
from lucid.preparation.inputs.documents import Reader, scan
from lucid.preparation.inputs.omissions import Dropped, refuse
from lucid.preparation.inputs.pieces import pieces_of
from lucid.preparation.inputs.sources import find_sources

GOOD = [f"Document {number} says this. It is not long. It ends." for number in range(9)]


def json_lines(texts: list[str]) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


def prepared(folder: Path, **options: object) -> Manifest:
    """The manifest of the corpus made of the good documents and the other files in the folder."""
    (folder / "good.jsonl").write_bytes(json_lines(GOOD))
    return prepare([folder], folder.parent / "corpus", vocab_size=100, **options)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    return tmp_path / "text"


# By reason: a file with such text, the line, and the number of good documents in the file.
BAD = {
    "not UTF-8": ("a.txt", b"One is here.\n\nb\xffd\nTwo is here.\n", 3, 2),
    "NUL bytes": ("a.txt", b"One is here.\n\0\0\n", 2, 1),
    "longer than 16 MiB": ("a.txt", b"One is here.\n" + b"x" * (1 << 24) + b"yz\n\nTwo is here.\n", 2, 2),
    "empty document": ("a.jsonl", json_lines(["One is here.", " \n"]), 2, 1),
    "not JSON": ("a.jsonl", json_lines(["One is here."]) + b'{"text": \n', 2, 1),
    "half a surrogate pair": ("a.jsonl", b'{"text": "\\ud800"}\n', 1, 0),
    "no text": ("a.jsonl", b'{"body": "x"}\n', 1, 0),
    "unreadable file": ("a.txt.gz", gzip.compress(b"One is here.\n" * 1000)[:-10], 1, 0),
}


@pytest.mark.parametrize("reason", BAD)
def test_unusable_text_is_left_out_counted_and_listed(folder: Path, reason: str) -> None:
    name, content, line, others = BAD[reason]
    (folder / name).write_bytes(content)
    manifest = prepared(folder, held_out=0)
    assert manifest.dropped == {reason: 1}
    assert (folder.parent / "corpus" / "dropped.txt").read_text().startswith(f"{name}:{line}\t{reason}")
    assert manifest.splits["train"].documents == len(GOOD) + others


def test_the_manifest_shows_the_bytes_of_a_name_that_is_not_utf_8(folder: Path) -> None:
    (folder / os.fsdecode(b"\xe9t\xe9.txt")).write_bytes(b"One is here.\n\0\n")
    (folder / "été.txt").write_text("Two is here.\n")
    prepared(folder)
    inputs = Manifest.read(folder.parent / "corpus").made_from["inputs"]
    assert {entry["name"] for entry in inputs} == {"good.jsonl", "été.txt", r"\xe9t\xe9.txt"}
    assert (folder.parent / "corpus" / "dropped.txt").read_text() == r"\xe9t\xe9.txt:2" + "\tNUL bytes\n"


def test_what_is_left_out_has_one_line_whatever_a_name_or_a_message_holds(folder: Path) -> None:
    (folder / "a\nb\tc.txt").write_bytes(b"One is here.\n\0\n")
    (folder / "d\re.pdf").write_bytes(b"%PDF")
    prepared(folder)
    listed = folder.parent / "corpus" / "dropped.txt"
    assert listed.read_text().splitlines() == ["d e.pdf\tanother kind of file", "a b c.txt:2\tNUL bytes"]
    dropped = Dropped()
    dropped.note(find_sources([folder])[0][0], 3, "unreadable file", "no\tmore\r\nbytes\n")
    assert dropped.lines == ["a b c.txt:3\tunreadable file\tno more bytes"]
    assert dropped.first == "a b c.txt:3: unreadable file: no more bytes"


@pytest.mark.parametrize("reason", BAD)
def test_strict_refuses_unusable_text_by_its_file_and_line(folder: Path, reason: str) -> None:
    name, content, line, _ = BAD[reason]
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{folder / name}:{line}: {reason}"):
        prepared(folder, strict=True)


def when(stage: str, action: Callable[[], object]) -> Callable[[str, int, int], None]:
    """A report that acts when a stage begins."""
    return lambda name, done, total: action() if (name, done) == (stage, 0) and total else None


def test_a_file_that_vanishes_is_reported(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"One is here.")
    manifest = prepared(folder, held_out=0, report=when("encoding", lambda: (folder / "a.txt").unlink()))
    assert manifest.dropped == {"unreadable file": 1}
    assert "a.txt:1\tunreadable file\tNo such file" in (folder.parent / "corpus" / "dropped.txt").read_text()


def test_a_file_that_changes_meanwhile_is_an_error(folder: Path) -> None:
    (folder / "a.txt").write_bytes(b"One is here.")
    with pytest.raises(DataError, match=r"a\.txt has changed while it was being prepared"):
        prepared(folder, report=when("encoding", lambda: (folder / "a.txt").write_bytes(b"Two are here.")))


def interrupt() -> None:
    raise KeyboardInterrupt


def test_work_begun_with_whole_files_does_not_go_on_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PIECE_BYTES", 100)  # a piece that need not end with a document cuts one in two
    (folder / "a.txt").write_text("One is here. It is long.\nIt goes on.\nAnd on.\n\n" * 20)
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, whole_files=True, report=when("encoding", interrupt))
    again = prepared(folder)
    assert again == prepare([folder], tmp_path / "fresh", vocab_size=100)
    assert again.splits["train"].documents + again.splits["held_out"].documents == len(GOOD) + 20


@pytest.mark.parametrize("rules", ["_RULES", "_LIBRARIES"])
def test_work_begun_under_other_rules_does_not_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(stages, rules, {"_RULES": 0, "_LIBRARIES": ["tokenizers"]}[rules])
        # An earlier version found the same sentences, but not the same tokens.
        earlier.setattr("lucid.preparation.parts._LONGEST_SENTENCE", 5)
        with pytest.raises(KeyboardInterrupt):
            prepared(folder, report=when("writing shards", interrupt))
    assert prepared(folder) == prepare([folder], tmp_path / "fresh", vocab_size=100)


def test_nothing_is_left_of_files_that_a_kill_cut_short(folder: Path) -> None:
    corpus = folder.parent / "corpus"
    names = ("train-00000.tokens.npy", "train.frequencies.npy", "tokenizer/vocab.txt", "manifest.json")
    cut_short = [replacing(corpus / name) for name in names]
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, report=when("writing shards", interrupt))
    for unfinished in cut_short:
        unfinished.__enter__().write_bytes(b"half")
    manifest = prepared(folder)
    found = {str(path.relative_to(corpus)) for path in corpus.rglob("*") if path.is_file()}
    assert found == {*manifest.files, "manifest.json"}


def test_work_begun_on_a_file_does_not_go_on_with_other_content_of_the_same_size_and_time(
    folder: Path, tmp_path: Path
) -> None:
    path = folder / "a.txt"
    path.write_text("One is here. It is long.")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt):
        prepared(folder, report=when("writing shards", interrupt))
    path.write_text("Two is here. It is long.")
    os.utime(path, ns=times)
    assert prepared(folder) == prepare([folder], tmp_path / "fresh", vocab_size=100)


def test_a_table_is_read_after_a_run_with_another_column(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", GOOD, rows_per_group=4)
    with pytest.raises(DataError, match=r"0 documents that can be used.* First left out: a\.parquet:1: no such column"):
        prepare([tmp_path / "a.parquet"], tmp_path / "corpus", vocab_size=100, text_field="body")
    assert prepare([tmp_path / "a.parquet"], tmp_path / "corpus", vocab_size=100).dropped == {}


def test_a_file_that_could_not_be_read_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (folder / "a.txt").write_text("One is here.")
    with monkeypatch.context() as patched:
        patched.setattr("lucid.preparation.inputs.documents.unpacked", fail)
        with pytest.raises(DataError, match=r"First left out: a\.txt:1: unreadable file: Permission denied"):
            prepared(folder)
    assert prepared(folder).dropped == {}


def test_linked_folders_are_read_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("One is here.\n\nTwo is here.")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "circle").symlink_to(folder)
    manifest = prepared(folder, held_out=0)
    assert [entry["name"] for entry in manifest.made_from["inputs"]] == ["good.jsonl", "linked/a.txt"]
    assert manifest.splits["train"].documents == len(GOOD) + 2


def test_a_broken_link_is_refused(folder: Path) -> None:
    (folder / "a.txt").symlink_to("nowhere.txt")
    with pytest.raises(DataError, match=r"a\.txt' is a broken link"):
        prepared(folder)


def test_a_folder_that_cannot_be_listed_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "secret").mkdir()
    scandir = os.scandir

    def guarded(path: str) -> object:  # like permissions, which do not stop root
        if Path(path).name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(DataError, match=r"secret' cannot be read \(Permission denied\)"):
        prepared(folder)


@pytest.mark.parametrize("at_once", [2, 1 << 20])
def test_on_request_all_but_the_first_of_equal_documents_are_dropped(
    folder: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lucid.preparation.selection._HASHES_AT_ONCE", at_once)
    (folder / "a.jsonl").write_bytes(json_lines([GOOD[3], "Another one. It is alone.", GOOD[5], GOOD[3]]))
    manifest = prepared(folder, held_out=0, drop_duplicates=True)
    assert manifest.dropped == {"duplicate": 3}
    assert manifest.splits["train"].documents == len(GOOD) + 1
    assert prepared(folder, held_out=0, overwrite=True).splits["train"].documents == len(GOOD) + 4


def test_a_whole_file_may_be_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\none\n\ntwo\n")
    (tmp_path / "b.txt").write_bytes(b"three\n")
    documents = list(read_documents([tmp_path], whole_files=True))
    assert [(document.text, document.line) for document in documents] == [("one\n\ntwo", 2), ("three", 1)]


def test_the_text_may_be_in_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 1, "body": "one"}\n')
    assert [document.text for document in read_documents([tmp_path / "a.jsonl"], text_field="body")] == ["one"]


def write_table(path: Path, texts: list[str | None], rows_per_group: int) -> None:
    table = pyarrow.table({"id": list(range(len(texts))), "text": texts})
    parquet.write_table(table, path, row_group_size=rows_per_group)


def test_a_table_is_read_row_by_row(tmp_path: Path) -> None:
    write_table(tmp_path / "a.parquet", ["one", None, "", "two", "three"], rows_per_group=2)
    dropped: list[tuple[int, str]] = []
    documents = read_documents([tmp_path], drop=lambda source, line, reason, detail: dropped.append((line, reason)))
    assert [(document.text, document.line) for document in documents] == [("one", 1), ("two", 4), ("three", 5)]
    assert dropped == [(2, "no text"), (3, "empty document")]


def in_pieces(path: Path, piece_bytes: int, backwards: bool = False) -> list[tuple[int, str]]:
    """The documents of a file, read in pieces, by their lines."""
    ((source,), _) = find_sources([path])
    reader = Reader()
    pieces = pieces_of(source, scan(source, piece_bytes, whole_files=False), refuse)
    if backwards:
        pieces.reverse()
    documents: list[Document] = [document for piece in pieces for document in reader.documents(piece, refuse)]
    reader.close()
    return sorted((document.line, document.text) for document in documents)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("backwards", [False, True])
@given(texts=st.lists(st.text("ab \u00e4.", max_size=9).filter(str.strip), min_size=1, max_size=30), end=st.booleans())
def test_pieces_hold_the_documents_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, backwards: bool, texts: list[str], end: bool
) -> None:
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    folder = tmp_path_factory.mktemp("pieces")
    text, lines = folder / f"a.txt{suffix}", folder / f"a.jsonl{suffix}"
    text.write_bytes(pack("\r\n \r\n".join(texts).encode() + b"\n" * end))
    lines.write_bytes(pack(json_lines(texts)))
    for piece_bytes in (40, 100):
        assert in_pieces(text, piece_bytes, backwards) == in_pieces(text, 1 << 20)
    for piece_bytes in (1, 20):
        assert in_pieces(lines, piece_bytes, backwards) == [(line, text) for line, text in enumerate(texts, start=1)]


@pytest.mark.parametrize("piece_bytes", [1, 30, 1 << 20])
def test_pieces_of_a_table_hold_its_rows(tmp_path: Path, piece_bytes: int) -> None:
    texts = [f"row {number}" for number in range(100)]
    write_table(tmp_path / "a.parquet", texts, rows_per_group=30)
    assert in_pieces(tmp_path / "a.parquet", piece_bytes) == list(enumerate(texts, start=1))


def test_the_tokenizer_is_trained_on_a_sample_without_held_out_documents(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    train = vocabulary.train_tokenizer
    monkeypatch.setattr(
        stages, "train_tokenizer", lambda texts, settings: (seen.extend(texts()), train(texts, settings))[1]
    )
    prepared(folder)
    assert len(seen) == len(GOOD) - 2
    seen.clear()
    prepared(folder, overwrite=True, sample_bytes=400)
    assert 0 < len(seen) < len(GOOD) - 2
    assert load_tokenizer(folder.parent / "corpus" / "tokenizer").get_vocab_size() <= 100


def test_a_cell_of_a_table_that_is_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "a.parquet", ["short", "x" * 11, "雲" * 3, "雲" * 4], rows_per_group=3)
    monkeypatch.setattr("lucid.preparation.inputs.tables.LONGEST_LINE", 10)
    left_out: list[tuple[int, str]] = []
    found = read_documents(
        [tmp_path / "a.parquet"], drop=lambda source, line, reason, _: left_out.append((line, reason))
    )
    assert [document.text for document in found] == ["short", "雲" * 3]
    assert left_out == [(2, "longer than 16 MiB"), (4, "longer than 16 MiB")]
    with pytest.raises(DataError, match=r"a\.parquet:2: longer than 16 MiB: divide the text of the cell among several"):
        list(read_documents([tmp_path / "a.parquet"]))
