"""Text from a stranger, for `prepare`: it becomes documents, or is refused with the file's name."""

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest
from damage import damaged, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid.data import Corpus
from lucid.errors import DataError
from lucid.preparation import prepare, read_documents
from lucid.preparation.sentences import split_sentences

LINES = [json.dumps({"text": text}) for text in ("One is here. Two is here.", "Drei süße Igel.", "  \n\n ", "\N{OWL}")]
JSON = "\n".join(LINES).encode()
TEXT = "One is here.\r\nTwo is here.\n\nDrei süße Igel.\n\n\N{OWL}\n".encode()
ROWS = 'id,text\r\n1,"One is here. ""Two"" is\r\nhere."\r\n2,Drei süße Igel.\r\n3,"\N{OWL}"\r\n'.encode()
PAGE = b"<!DOCTYPE html><title>One</title><!-- x --><p a='>'>is &amp; here.<br/><script>x<y</script><pre>a\nb</pre>"
FILES = {
    "a.txt": TEXT,
    "a.jsonl": JSON,
    "a.txt.gz": gzip.compress(TEXT, mtime=0),
    "a.jsonl.gz": gzip.compress(JSON, mtime=0),
    "a.txt.xz": lzma.compress(TEXT),
    "a.txt.bz2": bz2.compress(TEXT),
    "a.csv": ROWS,
    "a.html": PAGE,
    "a.md": b"---\na: b\n---\n# One\n\n- *is* [here](x)\n\n```\nTwo\n```\n|a|b|\n|-|-|\n|1|2|\n<b>x</b>\n",
}

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message = refusal(DataError, lambda: [list(split_sentences(document.text)) for document in read_documents([path])])
    assert message is None or str(path) in message


@pytest.mark.parametrize("name", FILES)
@in_one_folder
@given(data=st.data())
def test_damaged_text_is_read_or_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    read_or_refused(tmp_path / name, data.draw(damaged(FILES[name])))


@given(text=st.text())
def test_any_text_is_split_into_sentences_that_hold_all_of_it(text: str) -> None:
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


HOSTILE_LINES = [
    *("[" * 100_000, '{"text": ' * 100_000, '{"text": 1e400}', '{"text": NaN}', '{"text": ["x"]}', '"text"', "\0"),
    *("9" * 5000, '{"text": "\\udc80"}', '{"text": {"text": "x"}}'),
]


@pytest.mark.parametrize("line", HOSTILE_LINES, ids=lambda line: ascii(line[:20]))
def test_a_hostile_line_of_json_is_refused_by_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{LINES[0]}\n{line}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        list(read_documents([tmp_path / "a.jsonl"]))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_line_without_end_is_refused_by_its_number(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lucid.preparation.inputs.pieces.LONGEST_LINE", 100)
    (tmp_path / name).write_text(f"{LINES[0]}\n" + "x" * 101)
    with pytest.raises(DataError, match=rf"{name}:2: longer than .*: break it"):
        list(read_documents([tmp_path / name]))


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        list(read_documents([tmp_path / "a.txt"]))


STRANGE_DOCUMENTS = [
    *("a" * 300_000, "\0" * 1000 + "x y", "." * 100_000, "A." * 50_000, "a\n" * 50_000, "e" + "\u0301" * 100_000),
    "\u200d" * 9999,
]


@pytest.mark.parametrize("text", STRANGE_DOCUMENTS, ids=lambda text: ascii(text[:3]))
def test_strange_documents_are_prepared(tmp_path: Path, text: str) -> None:
    documents = [text, "One is here. Two is here.", "Three is there. Four is there."]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": document}) for document in documents))
    prepare([tmp_path / "a.jsonl"], tmp_path / "corpus", vocab_size=100, held_out=0)
    Corpus.open(tmp_path / "corpus").verify()
