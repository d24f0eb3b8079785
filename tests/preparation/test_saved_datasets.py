"""Folders of `save_to_disk` and files of Arrow: which documents they hold."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc
from reading import left_out, texts

from lucid.errors import DataError
from lucid.preparation import read_documents
from lucid.preparation.inputs.documents import Reader, scan
from lucid.preparation.inputs.omissions import refuse
from lucid.preparation.inputs.pieces import pieces_of
from lucid.preparation.inputs.saved_datasets import saved_splits
from lucid.preparation.inputs.sources import find_sources


def save_dataset(folder: Path, batches: list[list[str | None]]) -> None:
    """Write what `Dataset.save_to_disk` writes, and a cache of `map`."""
    folder.mkdir(parents=True)
    schema = pyarrow.schema({"id": pyarrow.int64(), "text": pyarrow.string()})
    for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
        with ipc.new_stream(folder / name, schema) as stream:
            for batch in batches:
                stream.write_batch(pyarrow.record_batch([list(range(len(batch))), batch], schema=schema))
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": null}')
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_dataset_is_read_without_its_caches(tmp_path: Path) -> None:
    save_dataset(tmp_path / "mine", [["one", "two"], [], [None, "four"]])
    assert texts(tmp_path / "mine", drop=lambda *fault: None) == ["one", "two", "four"]
    assert left_out(tmp_path / "mine") == [(3, "no text")]
    assert [other.name for other in find_sources([tmp_path])[1]] == []


def test_all_splits_of_saved_datasets_are_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_dataset(tmp_path / "mine" / split, [[split]])
    (tmp_path / "mine" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts(tmp_path / "mine") == ["test", "train"]
    assert find_sources([tmp_path / "mine"])[1] == []
    assert saved_splits(tmp_path / "mine") == ["test", "train"]
    assert saved_splits(tmp_path / "mine" / "train") == saved_splits(tmp_path / "nowhere") == []
    (tmp_path / "mine" / "dataset_dict.json").write_text('["train"]')
    with pytest.raises(DataError, match=r"dataset_dict\.json is damaged \(it is no JSON object\)"):
        saved_splits(tmp_path / "mine")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", r"state\.json is damaged \("),
        ("{}", r"state\.json is damaged \(it lists no files\)"),
        ('{"_data_files": [{"filename": "data-1.arrow"}]}', r"data-1\.arrow is missing, though state\.json lists it"),
        ('{"_data_files": [], "_indices_data_files": [{}]}', "was saved by an old version of datasets"),
    ],
)
def test_a_damaged_list_of_a_dataset_is_refused(tmp_path: Path, state: str, message: str) -> None:
    save_dataset(tmp_path / "mine", [["one"]])
    (tmp_path / "mine" / "state.json").write_text(state)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / "mine")


def test_an_arrow_file_of_random_access_is_read_in_pieces(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"row {number}" for number in range(50)]})
    with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=7)
    ((source,), _) = find_sources([tmp_path / "a.arrow"])
    pieces = pieces_of(source, scan(source, 100, False), refuse)
    assert len(pieces) > 3
    found = [document for piece in pieces for document in Reader().documents(piece, refuse)]
    assert [(document.line, document.text) for document in found] == [(n + 1, f"row {n}") for n in range(50)]


@pytest.mark.parametrize(
    "kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())], ids=str
)
def test_text_in_an_arrow_file_may_be_of_any_kind(tmp_path: Path, kind: pyarrow.DataType) -> None:
    table = pyarrow.table({"text": pyarrow.array(["one", None, "two"]).cast(kind)})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert texts(tmp_path / "a.arrow", drop=lambda *fault: None) == ["one", "two"]


def test_text_that_is_not_utf_8_in_an_arrow_file_is_left_out_by_its_row(tmp_path: Path) -> None:
    column = pyarrow.array([b"one", b"t\xffo", b"three"]).view(pyarrow.string())
    table = pyarrow.table({"text": column})
    with ipc.new_stream(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert left_out(tmp_path / "a.arrow") == [(2, "not UTF-8")]


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_damaged_arrow_file_is_read_or_left_out(tmp_path: Path, is_stream: bool) -> None:
    table = pyarrow.table({"text": ["one", "two ü", None] * 20})
    path = tmp_path / "a.arrow"
    with (ipc.new_stream if is_stream else ipc.new_file)(path, table.schema) as file:
        file.write_table(table, max_chunksize=16)
    content = path.read_bytes()
    for place in range(0, len(content), 13):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        list(read_documents([path], drop=lambda *fault: None))
        path.write_bytes(content[:place])
        list(read_documents([path], drop=lambda *fault: None))
