"""The memory of reading, splitting, encoding and training does not depend on what a long text holds."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import FEW_CORES
from pyarrow import parquet
from texts import made_up_text
from tokenizers import AddedToken, Tokenizer, normalizers

from lucid.data.tokenizer import save_tokenizer
from lucid.preparation import encoder, sentences
from lucid.preparation.encoder import TextEncoder
from lucid.preparation.sentences import split_sentences
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

MEBIBYTE = 1 << 20
# Bytes that encoding or training may take. They took 430 MiB for a MiB of full stops where memory grew with the text.
MOST = 256 * MEBIBYTE

# Reads each file of a folder, encodes it and trains on it; prints the most memory that each took beyond the text.
PROGRAM = """
import json, sys
from pathlib import Path
from lucid.data.tokenizer import load_tokenizer
from lucid.preparation import parts, vocabulary
from lucid.preparation.inputs import documents, omissions, pieces, sources

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

def peak_of(work):
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return memory("VmHWM") - before

folder, tokenizer = map(Path, sys.argv[1:])
settings = parts.TextSettings(whole_files=False, language="en", strict=True)
writer = parts.PartWriter(settings, load_tokenizer(tokenizer), 1 << 22)
for number, source in enumerate(sources.find_sources([folder])[0]):
    scanned = documents.scan(source, 1 << 24, False)
    portion = parts.Portion(number, tuple(pieces.pieces_of(source, scanned, omissions.refuse)))
    encoding = peak_of(lambda: writer(portion, folder / "part"))
    texts = lambda: (document.text for document in documents.read_documents([folder / source.name]))
    training = peak_of(lambda: vocabulary.train_tokenizer(texts, vocabulary.VocabularySettings(64)))
    print(json.dumps([source.name, encoding, training]), flush=True)
"""


def table(path: Path, text: str) -> None:
    parquet.write_table(pa.table({"text": [text]}), path)


def text_file(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def packed_line(path: Path, text: str) -> None:
    path.write_bytes(gzip.compress(json.dumps({"text": text}).encode(), compresslevel=1))


SIZE = 1 << 20
# A text without a place where it could be cut, or with many, in each kind of file.
LONG: dict[str, tuple[Callable[[Path, str], None], str]] = {
    "words.txt": (text_file, "lorem ipsum dolor " * (SIZE // 9)),
    "letters.jsonl.gz": (packed_line, "a " * (SIZE // 2)),
    "stops.txt": (text_file, "." * SIZE),
    "word.parquet": (table, "a" * 4 * SIZE),
    "marks.txt": (text_file, "a" + "\u0301" * SIZE),
    "spaces.jsonl.gz": (packed_line, "a" + " \n" * SIZE + "b"),
    "ideographs.parquet": (table, "雲" * (SIZE // 2)),
    "paragraphs.jsonl.gz": (packed_line, "ab\n\n" * (SIZE // 4)),
    "lines.txt": (text_file, "Ab\n" * (SIZE // 3)),
}


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """The most bytes that encoding each file and training on it took."""
    folder, tokenizer = tmp_path_factory.mktemp("long"), tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(lambda: [made_up_text(20, seed=1)], VocabularySettings(200)).tokenizer, tokenizer)
    for name, (write, text) in LONG.items():
        write(folder / name, text)
    process = [sys.executable, "-c", PROGRAM, str(folder), str(tokenizer)]
    finished = subprocess.run(process, env=os.environ | FEW_CORES, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return {name: (encoding, training) for name, encoding, training in map(json.loads, finished.stdout.splitlines())}


@pytest.mark.parametrize("name", LONG)
def test_memory_is_bounded_whatever_a_long_text_holds(peaks: dict[str, tuple[int, int]], name: str) -> None:
    encoding, training = peaks[name]
    assert encoding < MOST
    assert training < MOST


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = [made_up_text(20, seed=1), "雲の上. don't, 3.14 (naïve) ß É"]
    tokenizer = train_tokenizer(lambda: texts, VocabularySettings(300)).tokenizer
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=request.param)
    return tokenizer


@given(word=st.text(st.sampled_from("abco\u00e9\u0130\u0301\u0001.,-雲上\u00a0\U0001f600"), max_size=400))
def test_a_long_word_has_the_ids_that_it_has_as_a_whole(tokenizer: Tokenizer, word: str) -> None:
    word = word.replace(" ", "")
    whole = TextEncoder(tokenizer, 1 << 20).encode(["so", word, f"ba {word} co"])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoder, "_LONG_WORD", 7)
        split = TextEncoder(tokenizer, 1 << 20).encode(["so", word, f"ba {word} co"])
    assert [ids.tolist() for ids in split] == [ids.tolist() for ids in whole]


@pytest.fixture(scope="module")
def with_added(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with added tokens of all kinds, some of which overlap."""
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens(
        [
            *(AddedToken(text, normalized=False, special=True) for text in ("<E1>", "ca", "<E", "É")),
            *(AddedToken(text, normalized=True) for text in ("Co,", "雲a", "aoa", "-")),
            AddedToken("bob", normalized=True, single_word=True),
            AddedToken("oc", normalized=False, single_word=True),
        ]
    )
    return larger


@given(
    words=st.lists(st.sampled_from([*"abcoABCO\u00e9É\u0301.,-_雲<>", "<E1>", "ca", "Co,", "bob", "oc"]), max_size=60)
)
def test_a_long_word_has_its_added_tokens(with_added: Tokenizer, words: list[str]) -> None:
    sentence = f"so {''.join(words)} co"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(encoder, "_LONG_WORD", 7)
        ids, _ = TextEncoder(with_added, 1 << 20).encode([sentence])
    assert ids.tolist() == with_added.encode(sentence, add_special_tokens=False).ids


def test_an_added_token_after_a_word_without_end_is_found(with_added: Tokenizer) -> None:
    ids, _ = TextEncoder(with_added, 1 << 20).encode(["so " + "x" * 20_000 + "<E1>"])
    assert ids[-2:].tolist() == [with_added.token_to_id("[UNK]"), with_added.token_to_id("<E1>")]


def test_a_word_that_is_longer_than_any_block_is_one_unknown_token(tokenizer: Tokenizer) -> None:
    text = f"ba {'x' * 300_000} co"
    ids, counts = TextEncoder(tokenizer, 1 << 20).encode(list(split_sentences(text)))
    assert counts.sum() == 3
    assert np.flatnonzero(ids == tokenizer.token_to_id("[UNK]")).tolist() == [1]


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_text_is_cut_between_paragraphs_without_a_trace(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = made_up_text(60, seed=2, longest=5).replace("\n\n", end)
    whole = list(split_sentences(text))
    monkeypatch.setattr(sentences, "_AT_ONCE", 2000)
    assert list(split_sentences(text)) == whole
    assert len(text) > 4 * 2000


@pytest.mark.parametrize("between", [" ", "\n", "\t\t"])
def test_a_text_without_paragraphs_is_cut_between_words(between: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*made_up_text(20, seed=3).split(), "a" * 700, "bc", "de"]
    monkeypatch.setattr(sentences, "_AT_ONCE", 300)
    found = list(split_sentences(between.join(words)))
    assert " ".join(found).split() == words
    assert "a" * 700 in found
