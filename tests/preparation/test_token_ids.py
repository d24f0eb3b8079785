"""Token ids in place of text: the same corpus as the text, and what cannot be used is left out with its reason."""

import json
from itertools import chain, pairwise
from pathlib import Path

import pyarrow
import pytest
from pyarrow import ipc, parquet
from texts import made_up_text

from lucid.cli.corpus_summary import print_summary
from lucid.data import Corpus, Manifest, load_tokenizer
from lucid.errors import DataError
from lucid.preparation import prepare
from lucid.preparation.sentences import split_sentences

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", "C", "G", "T"]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    """The folder of a vocabulary of bases."""
    (tmp_path / "bases").mkdir()
    (tmp_path / "bases" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path / "bases"


def write(path: Path, values: list[object]) -> None:
    """Write values as the field `ids` of records."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"ids": value}) + "\n" for value in values))
        return
    table = pyarrow.table({"n": list(range(len(values))), "ids": values})
    if path.suffix == ".parquet":
        parquet.write_table(table, path, row_group_size=3)
        return
    with ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=3)


def prepared(path: Path, vocabulary: Path, **options: object) -> Manifest:
    options = {"tokenizer": vocabulary, "ids_field": "ids", "held_out": 0} | options
    return prepare([path], path.parent / "corpus", **options)  # type: ignore[arg-type]


def sentences_of(folder: Path) -> list[list[list[int]]]:
    """The ids of the sentences of each document."""
    corpus = Corpus.open(folder)
    firsts = corpus.documents.at(range(corpus.document_count + 1))
    starts = corpus.sentences.at(range(firsts[-1] + 1))
    return [
        [corpus.tokens(range(starts[number], starts[number + 1])).tolist() for number in range(first, stop)]
        for first, stop in pairwise(firsts)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("nested", [False, True])
def test_ids_are_taken_as_they_are(tmp_path: Path, vocabulary: Path, suffix: str, nested: bool) -> None:
    documents = [[[5, 6, 7], [8, 8]], [[1, 5]], [[7] * 300, [], [6]]]
    values: list[object] = list(documents) if nested else [list(chain(*sentences)) for sentences in documents]
    write(tmp_path / f"a{suffix}", values)
    prepared(tmp_path / f"a{suffix}", vocabulary)
    runs = [[7] * 128, [7] * 128, [7] * 44]
    expected = (
        [[[5, 6, 7], [8, 8]], [[1, 5]], [*runs, [6]]]
        if nested
        else [[[5, 6, 7, 8, 8]], [[1, 5]], [*runs[:2], [*runs[2], 6]]]
    )
    assert sentences_of(tmp_path / "corpus") == expected


@pytest.mark.parametrize("processes", [1, 2])
def test_the_ids_of_a_text_make_its_corpus(tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid.preparation.stages.PIECE_BYTES", 3000)
    (tmp_path / "a.txt").write_text(made_up_text(30, seed=3))
    of_text = prepare([tmp_path / "a.txt"], tmp_path / "text", vocab_size=200, held_out=0)
    tokenizer = load_tokenizer(tmp_path / "text" / "tokenizer")
    documents = [list(split_sentences(text)) for text in (tmp_path / "a.txt").read_text().split("\n\n")]
    values = [[tokenizer.encode(each, add_special_tokens=False).ids for each in sentences] for sentences in documents]
    write(tmp_path / "ids.jsonl", list(values))
    found = prepared(tmp_path / "ids.jsonl", tmp_path / "text" / "tokenizer", processes=processes)
    assert found.identity == of_text.identity


BAD = {
    "no token ids": ["5 6", None, [5, True], [5, 6.0], [[5], 6], [[[5]]], {"5": 6}, ["5"], 5],
    "id outside the vocabulary": [[5, 9], [5, -1], [[5], [10**30]]],
    "id of a special token": [[2, 5, 6, 3], [5, 4], [0, 5, 6]],
    "empty document": [[], [[], []]],
    "fewer than two tokens": [[5]],
}


def test_what_is_no_list_of_ids_is_left_out_with_its_reason(tmp_path: Path, vocabulary: Path) -> None:
    good: list[object] = [[5, 6], [6, 7]]
    write(tmp_path / "a.jsonl", good + [value for values in BAD.values() for value in values])
    assert prepared(tmp_path / "a.jsonl", vocabulary).dropped == {reason: len(values) for reason, values in BAD.items()}
    assert sentences_of(tmp_path / "corpus") == [[[5, 6]], [[6, 7]]]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (pyarrow.list_(pyarrow.int8()), [5, None], "no token ids"),
        (pyarrow.list_(pyarrow.int64()), None, "no token ids"),
        (pyarrow.list_(pyarrow.float32()), [5.0], "no token ids"),
        (pyarrow.list_(pyarrow.bool_()), [True], "no token ids"),
        (pyarrow.list_(pyarrow.list_(pyarrow.int32())), [[5], None], "no token ids"),
        (pyarrow.string(), "5", "no token ids"),
        (pyarrow.int64(), 5, "no token ids"),
        (pyarrow.list_(pyarrow.uint64()), [2**64 - 1], "id outside the vocabulary"),
        (pyarrow.large_list(pyarrow.uint8()), [9], "id outside the vocabulary"),
        (pyarrow.list_(pyarrow.int16()), [3], "id of a special token"),
        (pyarrow.list_(pyarrow.int16()), [], "empty document"),
    ],
    ids=str,
)
def test_a_cell_that_is_no_list_of_ids_is_refused_by_its_row(
    tmp_path: Path, vocabulary: Path, suffix: str, kind: pyarrow.DataType, value: object, reason: str
) -> None:
    (tmp_path / "input").mkdir()
    write(tmp_path / "input" / "good.jsonl", [[5, 6], [6, 7]])
    write(tmp_path / "input" / f"a{suffix}", pyarrow.array([value], kind))
    with pytest.raises(DataError, match=rf"a\{suffix}:1: {reason}"):
        prepare([tmp_path / "input"], tmp_path / "corpus", tokenizer=vocabulary, ids_field="ids", strict=True)


def test_equal_ids_are_duplicates_and_go_into_one_split(tmp_path: Path, vocabulary: Path) -> None:
    write(tmp_path / "a.jsonl", [[5, 6, 7], [[5], [6, 7]], [6, 7], [7, 8], [8, 8]])
    assert prepared(tmp_path / "a.jsonl", vocabulary, drop_duplicates=True).dropped == {"duplicate": 1}
    both = prepared(tmp_path / "a.jsonl", vocabulary, held_out=0.4, overwrite=True)
    assert sum(split.documents for split in both.splits.values()) == 5


def test_a_cell_with_too_many_ids_is_left_out(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lucid.preparation.inputs.tables.LONGEST_LINE", 100)
    write(tmp_path / "a.parquet", [[5, 6], [6, 7], [5] * 20])
    assert prepared(tmp_path / "a.parquet", vocabulary).dropped == {"longer than 16 MiB": 1}


def test_an_id_that_is_no_signed_number_is_shown_as_too_large(tmp_path: Path, vocabulary: Path) -> None:
    parquet.write_table(
        pyarrow.table({"ids": pyarrow.array([[2**63]], pyarrow.list_(pyarrow.uint64()))}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"id outside the vocabulary \(too large, in a vocabulary of 9 tokens\)"):
        prepared(tmp_path / "a.parquet", vocabulary, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": None}, r"token ids \(--ids-field\) need their vocabulary: pass --tokenizer"),
        ({"drop_repeated_lines": 3}, r"token ids \(--ids-field\) have no lines: leave out --drop-repeated-lines"),
        ({"text_field": ["body"]}, r"token ids \(--ids-field\) are read in place of text: leave out --text-field"),
        ({"kind": "csv"}, r"a' cannot hold token ids \(--ids-field\): use \.jsonl, \.parquet, \.arrow"),
        ({}, r"a' cannot hold token ids"),
    ],
)
def test_ids_need_a_vocabulary_and_records(
    tmp_path: Path, vocabulary: Path, options: dict[str, object], message: str
) -> None:
    (tmp_path / "a").write_text("ids\n5\n")
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "a", vocabulary, **options)


def test_the_advice_about_unknown_ids_is_for_who_made_them(
    tmp_path: Path, vocabulary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "a.jsonl", [[5, 6, 1], [6, 7]])
    print_summary(prepared(tmp_path / "a.jsonl", vocabulary), tmp_path / "corpus", "done")
    assert "20.0% of the tokens of train are [UNK], " in (errors := capsys.readouterr().err)
    assert "what made the ids has too small a vocabulary" in errors


def test_text_in_a_folder_of_ids_is_passed_over(tmp_path: Path, vocabulary: Path) -> None:
    (tmp_path / "input").mkdir()
    write(tmp_path / "input" / "a.jsonl", [[5, 6], [6, 7]])
    (tmp_path / "input" / "README.txt").write_text("Bases.")
    options = {"tokenizer": vocabulary, "ids_field": "ids", "held_out": 0}
    manifest = prepare([tmp_path / "input"], tmp_path / "corpus", **options)  # type: ignore[arg-type]
    assert manifest.dropped == {"another kind of file": 1}
