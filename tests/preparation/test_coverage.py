"""How much of a text a vocabulary knows, where it knows least, and whether it fits its normaliser."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from lucid.cli.app import app
from lucid.data import Manifest, load_tokenizer
from lucid.data.manifest import _hash
from lucid.data.tokenizer import bert_tokenizer, save_tokenizer
from lucid.errors import DataError
from lucid.preparation import prepare, stages
from lucid.preparation.coverage import contradictions

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_of(*tokens: str, **normalisation: bool) -> Tokenizer:
    return bert_tokenizer({token: number for number, token in enumerate([*SPECIAL, *tokens])}, **normalisation)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Text of which the tokenizer in `tokenizer` does not know all: ten documents with other shares of [UNK]."""
    save_tokenizer(tokenizer_of("fox", "##es", "run", ".", "雲", lowercase=True), tmp_path / "tokenizer")
    folder = tmp_path / "text"
    folder.mkdir()
    for name in ("a", "b"):
        documents = [f"{name * 2} foxes run. {'雲 ' * 30}{'Fuchs ' * 3 * number}" for number in range(5)]
        (folder / f"{name}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return folder


def made(text: Path, **options: object) -> Manifest:
    return prepare(
        [text], text.parent / "corpus", tokenizer=text.parent / "tokenizer", held_out=0.3, overwrite=True, **options
    )  # type: ignore[arg-type]


def test_words_and_unknown_words_are_counted(text: Path) -> None:
    manifest = made(text)
    splits = manifest.splits.values()
    # Each document has the name, foxes, run, a full stop, the ideographs, and the other words.
    assert sum(split.words for split in splits) == 10 * (4 + 30) + 2 * 3 * (0 + 1 + 2 + 3 + 4)
    assert sum(split.unknown for split in splits) == 10 + 2 * 3 * (0 + 1 + 2 + 3 + 4)
    assert sum(split.tokens - split.words for split in splits) == 10


def test_the_documents_with_the_largest_shares_of_unknown_words_are_named(text: Path) -> None:
    splits = made(text).splits.values()
    found = sorted(
        (document.source, document.line, document.unknown) for split in splits for document in split.least_known
    )
    # The two with 13 and with 10 unknown words in each file; with fewer they do not count.
    assert found == [(0, 7, 10), (0, 9, 13), (1, 7, 10), (1, 9, 13)]
    for split in splits:
        shares = [document.unknown / document.tokens for document in split.least_known]
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_counts_do_not_depend_on_how_the_work_is_divided(
    processes: int, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(text).splits
    monkeypatch.setattr(stages, "PIECE_BYTES", 200)
    monkeypatch.setattr(stages, "TOKENS_PER_SHARD", 100)
    divided = made(text, processes=processes).splits
    assert len(divided["train"].shards) > 1
    for name, split in whole.items():
        other = divided[name]
        assert (other.words, other.unknown, other.least_known) == (split.words, split.unknown, split.least_known)


def test_the_summary_has_the_shares_and_names_documents(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = text.parent / "corpus"
    arguments = ["prepare", str(text), "-o", str(corpus), "--processes", "1", "--held-out", "0"]
    app([*arguments, "--tokenizer", str(text.parent / "tokenizer")], standalone_mode=False)
    output, errors = capsys.readouterr()
    share = f"{70 / 410:.2%}"
    assert share in output
    assert f"{410 / 400:.2f}" in output
    assert "Documents with the largest share of [UNK]: a.txt:9 (28%), b.txt:9 (28%), a.txt:7 (23%)" in output
    assert f"warning: {70 / 410:.1%} of the tokens of train are [UNK]" in errors
    assert "leave out --tokenizer" in errors
    app([*arguments, "--overwrite", "--alphabet", "4", "--vocab-size", "80"], standalone_mode=False)
    assert "raise --alphabet (now 4)" in capsys.readouterr()[1]
    app([*arguments, "--overwrite", "--vocab-size", "80"], standalone_mode=False)
    output, errors = capsys.readouterr()
    assert errors == ""
    assert "0.00%" in output
    assert "Documents" not in output


@pytest.mark.parametrize(
    ("words", "options", "advice"),
    [
        (["ab" * 60, "ab"], [], "they have more than 100 characters, or some that are rare in this text; put spaces"),
        (["ab" * 60, "ab"], ["--alphabet", "9"], "they have more than 100 characters"),
        (["ab" * 60, "ab"], ["--alphabet", "1"], "raise --alphabet (now 1)"),
        ([chr(0x4E00 + number) for number in range(200)], [], "raise --vocab-size (now 99)"),
        ([chr(0x4E00 + number) for number in range(200)], ["--alphabet", "190"], "raise --vocab-size (now 99)"),
    ],
    ids=["long", "long, with an alphabet", "alphabet", "vocabulary", "vocabulary, with an alphabet"],
)
def test_the_warning_advises_what_can_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], options: list[str], advice: str
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(" ".join(words) for _ in range(3)), encoding="utf-8")
    arguments = ["prepare", str(tmp_path / "a.txt"), "-o", str(tmp_path / "corpus"), "--processes", "1"]
    app([*arguments, "--vocab-size", "99", "--held-out", "0", *options], standalone_mode=False)
    assert advice in capsys.readouterr().err


def rewrite_train(corpus: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the manifest of a corpus says of the split `train`, and its checksum with it."""
    path = corpus / "manifest.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    change(content["splits"]["train"])
    path.write_text(json.dumps({**content, "sha256": _hash(content)}))


def test_a_corpus_of_an_earlier_version_has_no_counts(text: Path) -> None:
    first = made(text)

    def forget(split: dict[str, Any]) -> None:
        del split["words"], split["unknown"], split["least_known"]

    rewrite_train(text.parent / "corpus", forget)
    old = Manifest.read(text.parent / "corpus")
    assert old.identity == first.identity
    assert (old.splits["train"].words, old.splits["train"].least_known) == (0, ())


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 10**6},
        {"words": 10**6},
        {"least_known": [{"source": 9, "line": 1, "tokens": 5, "unknown": 1}]},
        {"least_known": [{"source": 0, "line": 1, "tokens": 0, "unknown": 0}]},
    ],
)
def test_counts_that_contradict_each_other_are_refused(change: dict[str, object], text: Path) -> None:
    made(text)
    rewrite_train(text.parent / "corpus", lambda split: split.update(change))
    with pytest.raises(DataError, match="the unknown words of train are not among its words"):
        Manifest.read(text.parent / "corpus")


CASED = [f"{first}{second}" for first in "abcABC" for second in "xyz"]
ACCENTS = [f"{first}{second}" for first in "abcäöü" for second in "xyz"]
PLAIN = [f"{first}{second}" for first in "abc" for second in "xyz"]


@pytest.mark.parametrize(
    ("tokens", "normalisation", "expected"),
    [
        (CASED, {"lowercase": True}, ["9 of the 18 tokens of its vocabulary, such as Ax, are in no text"]),
        (ACCENTS, {"lowercase": True}, ["9 of the 18 tokens of its vocabulary, such as äx, are in no text"]),
        (PLAIN, {"lowercase": False}, ["its vocabulary has no capital letters"]),
        ([*CASED, *ACCENTS], {"lowercase": False, "strip_accents": True}, ["such as äx"]),
        (CASED, {"lowercase": False}, []),
        (ACCENTS, {"lowercase": True, "strip_accents": False}, []),
        (PLAIN, {"lowercase": True}, []),
        (["雲", "##雲", "1", "2"], {"lowercase": False}, []),
        ([*(f"a{number}" for number in range(200)), "[BOS]"], {"lowercase": True}, []),
    ],
)
def test_a_vocabulary_that_contradicts_its_normaliser_is_noticed(
    tokens: list[str], normalisation: dict[str, bool], expected: list[str]
) -> None:
    found = list(contradictions(tokenizer_of(*tokens, **normalisation)))
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_prepare_warns_of_a_tokenizer_that_contradicts_itself(text: Path) -> None:
    said: list[str] = []
    save_tokenizer(tokenizer_of(*PLAIN, lowercase=False), text.parent / "tokenizer")
    made(text, warn=said.append)
    assert len(said) == 1
    assert f"the tokenizer in {text.parent / 'tokenizer'} contradicts itself: its vocabulary has no capital" in said[0]
    assert np.all(load_tokenizer(text.parent / "corpus" / "tokenizer").encode("ax").ids[1:-1] == [5])
