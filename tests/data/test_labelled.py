"""Labelled texts: which columns hold them, which rows are left out, and what a message says."""

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest
import zstandard

from lucid.data.labelled import read_labelled
from lucid.errors import DataError


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


NAMED = [
    ("a.tsv", "id\tsentence\tlabel\n7\tOne is here.\tyes\n8\tTwo is not.\tno\n"),
    ("a.tsv", "One is here.\tyes\nTwo is not.\tno\n"),
    ("a.TSV", '\ufeff"text"\tlabel\r\n"One is here."\tyes\r\nTwo is not.\tno'),
    ("a.csv", 'label,text\nyes,"One is here."\nno,Two is not.\n'),
    ("a.csv", "text;label\nOne is here.;yes\n\nTwo is not.;no\n"),
    ("a.csv", "One is here.,yes\nTwo is not.,no\n"),
    ("a.jsonl", '{"label": "yes", "text": "One is here."}\n\n{"text": "Two is not.", "label": " no"}\n'),
]


@pytest.mark.parametrize(("name", "content"), NAMED)
def test_text_and_label_are_found(tmp_path: Path, name: str, content: str) -> None:
    found = read_labelled(written(tmp_path, name, content))
    assert (found.texts, found.pairs, found.labels) == (["One is here.", "Two is not."], None, ["yes", "no"])
    assert found.remarks == []


COMPRESS = {
    "gz": gzip.compress,
    "GZ": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


@pytest.mark.parametrize("packing", COMPRESS)
@pytest.mark.parametrize(("name", "content"), [NAMED[0], NAMED[4], NAMED[6]])
def test_compressed_files_are_read_as_others_are(tmp_path: Path, name: str, content: str, packing: str) -> None:
    packed = COMPRESS[packing](content.encode())
    found = read_labelled(written(tmp_path, f"{name}.{packing}", packed))
    assert (found.texts, found.labels) == (["One is here.", "Two is not."], ["yes", "no"])
    for damaged in (packed[:-6], content.encode()):
        path = written(tmp_path, f"{name}.{packing}", damaged)
        with pytest.raises(DataError, match=f"{name}.{packing} cannot be read: "):
            read_labelled(path)


PAIRED = [
    ("a.tsv", "A one.\tB one.\t1\nA two.\tB two.\t0\n"),
    ("a.tsv", "index\tsentence1\tsentence2\tlabel\n1\tA one.\tB one.\t1\n2\tA two.\tB two.\t0\n"),
    ("a.csv", "hypothesis,premise,label\nB one.,A one.,1\nB two.,A two.,0\n"),
    ("a.jsonl", '{"text": "A one.", "pair": "B one.", "label": 1}\n{"text": "A two.", "pair": "B two.", "label": 0}'),
]


@pytest.mark.parametrize(("name", "content"), PAIRED)
def test_pairs_are_found(tmp_path: Path, name: str, content: str) -> None:
    found = read_labelled(written(tmp_path, name, content))
    assert (found.texts, found.pairs, found.labels) == (["A one.", "A two."], ["B one.", "B two."], ["1", "0"])


def test_named_columns_are_taken_and_the_first_row_is_then_no_data(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "review\tstars\ttitle\nGood book.\t5\tA\nBad book.\t1\tB\n")
    found = read_labelled(path, text="review", label="stars")
    assert (found.texts, found.pairs, found.labels) == (["Good book.", "Bad book."], None, ["5", "1"])
    found = read_labelled(path, text="title", pair="review", label="stars")
    assert (found.texts, found.pairs) == (["A", "B"], ["Good book.", "Bad book."])


def test_a_quote_in_tsv_is_text_and_a_row_of_csv_may_have_several_lines(tmp_path: Path) -> None:
    found = read_labelled(written(tmp_path, "a.tsv", 'text\tlabel\n"One" is 5" long.\tx\n"""One"" is."\ty\n'))
    assert found.texts == ['"One" is 5" long.', '"One" is.']
    found = read_labelled(written(tmp_path, "a.csv", 'text,label\n"One\n""is"", here.",x\nno label,\n'))
    assert found.texts == ['One\n"is", here.']
    assert found.remarks == [f"{tmp_path}/a.csv:4: rows without 'label' are left out (1, this is the first)"]


def test_labels_are_ordered_as_numbers_or_as_texts(tmp_path: Path) -> None:
    assert read_labelled(written(tmp_path, "a.tsv", "x\t10\nx\t9\nx\t-1\nx\t9\n")).label_names == ["-1", "9", "10"]
    assert read_labelled(written(tmp_path, "a.tsv", "x\tb10\nx\tb9\nx\ta\n")).label_names == ["a", "b10", "b9"]
    mixed = '{"text": "x", "label": true}\n{"text": "x", "label": 2}\n'
    assert read_labelled(written(tmp_path, "a.jsonl", mixed)).label_names == ["2", "true"]


def test_rows_that_cannot_be_used_are_left_out_in_one_sentence_for_each_kind(tmp_path: Path) -> None:
    lines = [b"text\tlabel", b"good\ta", b"short", b"\tb", b" \tb", b"good\t ", b"\xff\ta", b"a\tb\tc", b"fine\tb"]
    found = read_labelled(written(tmp_path, "a.tsv", b"\n".join(lines)))
    assert (found.texts, found.labels) == (["good", "fine"], ["a", "b"])
    path = tmp_path / "a.tsv"
    assert found.remarks == [
        f"{path}:3: rows that do not have 2 cells are left out (2, this is the first)",
        f"{path}:4: rows without 'text' are left out (2, this is the first)",
        f"{path}:6: rows without 'label' are left out (1, this is the first)",
        f"{path}:7: rows that are not UTF-8 are left out (1, this is the first)",
    ]


@pytest.mark.parametrize(
    "line",
    ["[1]", "{", '{"text": 1, "label": "a"}', '{"text": "x", "label": 1.5}', '{"text": "\\ud800", "label": "a"}'],
)
def test_a_line_of_json_that_cannot_be_used_is_left_out(tmp_path: Path, line: str) -> None:
    found = read_labelled(written(tmp_path, "a.jsonl", f'{line}\n{{"text": "x", "label": "a"}}\n'))
    assert found.texts == ["x"]
    assert f"{tmp_path}/a.jsonl:1: rows " in found.remarks[0]


REFUSED = [
    ("a.txt", "x\ta\n", "has the wrong kind"),
    ("a.tsv", "", "no column is called 'text': the columns are none"),
    ("a.tsv", "text\tlabel\n", "has no usable row"),
    ("a.tsv", "id\tname\tsize\tage\n1\t2\t3\t4\n", "a.tsv:1: no column is called 'text'"),
    ("a.tsv", "id\tlabel\n1\t2\n", "a.tsv:1: no column is called 'text': the columns are 'id', 'label'"),
    ("a.csv", "text,label,label\nx,1,2\n", "a.csv:1: two columns are called 'label'"),
    ("a.csv", 'text,label\nx,1\n"y,2\n', "a.csv:3: a quote never closes"),
    ("a.tsv", "text\tlabel\nx\0\ty\n", "a.tsv:2: NUL bytes, which text does not have"),
    ("a.jsonl", "[1]\n", "has no line that is a JSON object"),
    ("a.jsonl", '{"text": "x"}\n', "a.jsonl:1: no column is called 'label'"),
    ("a.tsv", "text\tlabel\n" + "".join(f"x\ttext {n}\n" for n in range(30)), "has 30 different labels in 30 rows"),
    ("a.tsv", "review\tsentiment\n" + "x\tgood\ny\tbad\n" * 15, "a.tsv:1: this row is read as data, but no other"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    with pytest.raises(DataError) as refused:
        read_labelled(written(tmp_path, name, content))
    assert message in str(refused.value)
    assert str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_name_that_no_column_has_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "text\tlabel\nx\ty\n")
    for names in ({"text": "body"}, {"pair": "body"}, {"label": "body"}):
        with pytest.raises(DataError, match="no column is called 'body'"):
            read_labelled(path, **names)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tsv")
    (tmp_path / "b.tsv").mkdir()
    for name, message in (("a.tsv", "not a regular file"), ("b.tsv", "a folder"), ("c.tsv", "No such file")):
        with pytest.raises(DataError, match=message):
            read_labelled(tmp_path / name)


def test_a_line_without_end_is_refused_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid.data.labelled._LONGEST_LINE", 1 << 20)
    with pytest.raises(DataError, match=r"a\.tsv:2: longer than 1 MiB"):
        read_labelled(written(tmp_path, "a.tsv", "x\ta\n" + "x" * (1 << 21)))
