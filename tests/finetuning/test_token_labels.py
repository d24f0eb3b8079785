"""Sentences whose words have labels: columns and lists, what is left out, and what is refused."""

import gzip
import json

import pytest

from lucid.errors import DataError
from lucid.finetuning.token_labels import holds_words, read_token_labels

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
# NN B-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
GERM_EVAL = "#\thttp://a.b\t[2009]\n1\tNew York\tB-LOC\tO\n2\tist\tO\tO\n\n#\thttp://c.d\t[2010]\n1\tHier\tO\tO\n"


@pytest.fixture
def read(tmp_path):
    def run(text, name="a.conll", **columns):
        (tmp_path / name).write_text(text, errors="surrogateescape")
        return read_token_labels(tmp_path / name, **columns)

    return run


def test_columns_have_the_word_first_and_the_label_last(read):
    words, labels, remarks = read(CONLL_2003)
    assert words == [["EU", "rejects", "#"], ["Peter", "Blackburn"]]
    assert labels == [["B-ORG", "O", "O"], ["B-PER", "I-PER"]]
    assert remarks == []


def test_compressed_files_are_read_as_others_are(tmp_path):
    lists = json.dumps({"tokens": ["a", "b"], "labels": ["X", "Y"]}) + "\n"
    for name, text, labels in (("a.conll.gz", CONLL_2003, ["O", "B-PER", "I-PER"]), ("a.jsonl.gz", lists, ["X", "Y"])):
        packed = gzip.compress(text.encode())
        (tmp_path / name).write_bytes(packed)
        assert holds_words(tmp_path / name)
        assert read_token_labels(tmp_path / name)[1][-1] == labels[-2:]
        (tmp_path / name).write_bytes(packed[:-9])
        with pytest.raises(DataError, match=f"{name} cannot be read: "):
            holds_words(tmp_path / name) and read_token_labels(tmp_path / name)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(b"text\tlabel\nx\ty\n"))
    assert not holds_words(tmp_path / "b.tsv.gz")


def test_other_columns_are_chosen_by_number_and_cells_between_tabs_hold_spaces(read):
    words, labels, _ = read(GERM_EVAL, word="2", label="3")
    assert (words, labels) == ([["New York", "ist"], ["Hier"]], [["B-LOC", "O"], ["O"]])


def test_lists_in_json_lines_are_read_and_numbers_are_labels(read):
    rows = [{"tokens": ["a", "b"], "ner_tags": [1, 0]}, {"tokens": ["c"], "ner_tags": [0]}]
    words, labels, _ = read("\n".join(map(json.dumps, rows)), "a.jsonl")
    assert (words, labels) == ([["a", "b"], ["c"]], [["1", "0"], ["0"]])


def test_what_is_left_out_is_counted_by_kind_with_its_first_line(read):
    words, _, remarks = read("a O\nb O\n\nc\n\nd X Y\ne O\n\n\udcff O\n")
    assert words == [["a", "b"]]
    assert [remark.partition(":")[2] for remark in remarks] == [
        "4: sentences that have a line without 2 columns are left out (2, this is the first)",
        "9: sentences that are not UTF-8 are left out (1, this is the first)",
    ]
    rows = ['{"tokens": ["a"], "labels": ["O"]}', '{"tokens": ["a"], "labels": []}', "[", '{"tokens": "a"}']
    _, _, remarks = read("\n".join(rows), "a.jsonl")
    assert [remark.partition(":")[2].partition(" are left")[0] for remark in remarks] == [
        "2: sentences with another number of labels than words",
        "3: sentences that are no JSON object",
        "4: sentences without a list of words in 'tokens'",
    ]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", {}, "has no usable sentence"),
        ("a\nb\n", {}, "has one column: each line needs a word and its label"),
        ("a O\n", {"label": "3"}, "--label is '3', but the columns of .* are numbered from 1 to 2"),
        ("a O\n", {"word": "word"}, "--text is 'word', but the columns"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(text, columns, message, read):
    with pytest.raises(DataError, match=message):
        read(text, **columns)


def test_a_name_or_the_first_row_says_whether_words_have_labels(tmp_path):
    for name, text, expected in (
        ("a.conll", "", True),
        ("a.tsv", "a\tb\n", False),
        ("a.jsonl", '\n{"tokens": ["a"], "labels": ["O"]}\n', True),
        ("b.jsonl", '{"text": "a", "label": "x"}\n', False),
        ("c.jsonl", "nonsense", False),
    ):
        (tmp_path / name).write_text(text)
        assert holds_words(tmp_path / name) == expected, name
