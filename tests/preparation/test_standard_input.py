"""The standard input as a corpus: read once, copied, and removed."""

import gzip
import io
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from reading import texts

from lucid.data import Manifest
from lucid.errors import DataError
from lucid.preparation import prepare
from lucid.preparation.inputs.sources import Choice, find_sources


def give(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the standard input hold `content`."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


GOOD = b"\n\n".join(b"Document %d says this. It is not long. It ends." % number for number in range(9))


def test_the_standard_input_makes_the_corpus_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(GOOD)
    expected = prepare([tmp_path / "a.txt"], tmp_path / "expected", vocab_size=100)
    give(lzma.compress(GOOD), monkeypatch)
    found = prepare(["-"], tmp_path / "corpus", vocab_size=100)
    assert found.identity == expected.identity
    assert [entry["name"] for entry in found.made_from["inputs"]] == ["the standard input"]
    assert not (tmp_path / "corpus" / "unfinished").exists()
    give(lzma.compress(GOOD), monkeypatch)
    outcomes: list[str] = []
    again = prepare(["-"], tmp_path / "corpus", vocab_size=100, report=lambda stage, *_: outcomes.append(stage))
    assert again == found
    assert outcomes[-1].endswith("holds this corpus already: nothing was done")


def test_work_on_the_standard_input_goes_on_with_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "writing shards":
            raise KeyboardInterrupt

    give(GOOD, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare(["-"], tmp_path / "corpus", vocab_size=100, report=interrupt)
    part = tmp_path / "corpus" / "unfinished" / "part-000000.npz"
    assert not part.with_name("standard-input").exists()  # it will be read again
    written = part.stat().st_mtime_ns
    give(GOOD, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare(["-"], tmp_path / "corpus", vocab_size=100, report=interrupt)
    assert part.stat().st_mtime_ns == written
    give(GOOD.replace(b"not long", b"short"), monkeypatch)
    assert prepare(["-"], tmp_path / "corpus", vocab_size=100) == Manifest.read(tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "unfinished").exists()


@pytest.mark.parametrize(
    ("inputs", "content", "message"),
    [
        (["-", "-"], b"", "was named twice"),
        (["-"], b"\0\1", "the standard input is neither text in UTF-8 nor a table"),
        (["-"], b"", "the standard input is empty: there is nothing to read"),
        (["-"], b'{"text": "x"}\n{\n', "First left out: the standard input:2: not JSON"),
    ],
)
def test_a_bad_standard_input_is_refused(
    tmp_path: Path, inputs: list[str], content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(content, monkeypatch)
    with pytest.raises(DataError, match=message):
        prepare(inputs, tmp_path / "corpus", vocab_size=100)
    assert not list(tmp_path.glob("corpus/unfinished/standard-input*"))


def test_a_standard_input_of_another_corpus_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(GOOD)
    prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=100)
    before = sorted(tmp_path.rglob("*"))
    give(GOOD[:-70], monkeypatch)
    with pytest.raises(DataError, match="holds another corpus, which differs in inputs"):
        prepare(["-"], tmp_path / "corpus", vocab_size=100)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
def test_the_standard_input_may_be_csv(monkeypatch: pytest.MonkeyPatch, packed: Callable[[bytes], bytes]) -> None:
    give(packed(b"id;body\n1;one\n"), monkeypatch)
    assert texts("-", kind="csv", text_field="body") == ["one"]


def test_a_closed_standard_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="the standard input is closed"):
        prepare(["-"], tmp_path / "corpus", vocab_size=100)
    assert find_sources(["-"], Choice())[0][0].shown == "the standard input"
