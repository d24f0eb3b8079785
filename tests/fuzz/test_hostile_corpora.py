"""A prepared corpus from a stranger: manifest, shards, tokenizer. It is used, or refused in a sentence."""

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import damaged, damaged_json, refusal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid.data import Corpus, Manifest, Sampler, SamplerSettings, load_tokenizer
from lucid.data.manifest import MANIFEST_NAME
from lucid.errors import DataError
from lucid.preparation import prepare
from lucid.preparation.encoder import TextEncoder

SHARD = "train-00000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus, which the tests leave as they find it."""
    folder = tmp_path_factory.mktemp("hostile")
    documents = (f"Document {number} says this. It is not long. It ends." for number in range(8))
    (folder / "a.txt").write_text("\n\n".join(documents))
    prepare([folder / "a.txt"], folder / "corpus", vocab_size=100, held_out=0)
    return folder / "corpus"


@contextmanager
def replaced(folder: Path, name: str, content: bytes) -> Iterator[None]:
    """Replace a file of the corpus for the length of the block; its manifest is made to fit."""
    paths = folder / name, folder / MANIFEST_NAME
    originals = [path.read_bytes() for path in paths]
    manifest = json.loads(originals[1])
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        paths[1].write_bytes(signed(manifest))
        paths[0].write_bytes(content)
        yield
    finally:
        for path, original in zip(paths, originals, strict=True):
            path.write_bytes(original)


def signed(manifest: dict[str, Any]) -> bytes:
    """The manifest with a checksum of its own that is right."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": checksum}).encode()


def use(folder: Path) -> None:
    """Do with a corpus what training does."""
    corpus = Corpus.open(folder)
    corpus.verify()
    corpus.token_frequencies()
    for nsp in (True, False):
        batch = Sampler(corpus, SamplerSettings(32, nsp=nsp), seed=1).batch(5, range(20))
        assert 0 <= batch.input_ids.min() <= batch.input_ids.max() < corpus.vocab_size


def test_the_corpus_of_these_tests_is_usable(folder: Path) -> None:
    use(folder)


@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_manifest_is_refused(folder: Path, data: st.DataObject) -> None:
    content = data.draw(damaged((folder / MANIFEST_NAME).read_bytes()))
    with replaced(folder, MANIFEST_NAME, content):
        message = refusal(DataError, lambda: Manifest.read(folder))
    assert message is None or str(folder / MANIFEST_NAME) in message


@settings(max_examples=150)
@given(data=st.data())
def test_a_manifest_of_hostile_values_is_used_or_refused(folder: Path, data: st.DataObject) -> None:
    content = signed(data.draw(damaged_json(json.loads((folder / MANIFEST_NAME).read_bytes()))))
    with replaced(folder, MANIFEST_NAME, content):
        message = refusal(DataError, lambda: use(folder))
    assert message is None or str(folder) in message


@pytest.mark.parametrize("name", ["/etc/hostname", "../corpus/train-00000.tokens.npy", "a/../b", "a\0b", "", "."])
def test_a_manifest_does_not_lead_out_of_its_folder(folder: Path, name: str) -> None:
    manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    with replaced(folder, MANIFEST_NAME, signed(manifest)), pytest.raises(DataError, match="is damaged"):
        Corpus.open(folder)


def test_a_manifest_that_is_nested_too_deeply_is_damaged(folder: Path) -> None:
    with replaced(folder, MANIFEST_NAME, b"[" * 100_000), pytest.raises(DataError, match="nested too deeply"):
        Corpus.open(folder)


@pytest.mark.parametrize("part", ["tokens", "sentences", "documents"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_shard_with_a_checksum_that_fits_is_used_or_refused(
    folder: Path, part: str, data: st.DataObject
) -> None:
    name = f"{SHARD}.{part}.npy"
    with replaced(folder, name, data.draw(damaged((folder / name).read_bytes()))):
        message = refusal(DataError, lambda: use(folder))
    assert message is None or str(folder) in message


def npy(header: str, content: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HOSTILE_SHARDS = {
    "huge": npy("{'descr': '<u2', 'fortran_order': False, 'shape': (9223372036854775807,), }"),
    "larger than huge": npy("{'descr': '<u2', 'fortran_order': False, 'shape': (99999999999999999999999,), }"),
    "product": npy("{'descr': '<u2', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }"),
    "negative": npy("{'descr': '<u2', 'fortran_order': False, 'shape': (-1,), }"),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", b"\x80\x04K\x01."),
    "no numbers": npy("{'descr': '<u2', 'fortran_order': False, 'shape': ('a',), }"),
    "no type": npy("{'descr': 'nothing', 'fortran_order': False, 'shape': (3,), }"),
    "deep type": npy("{'descr': [('a', [('b', '<u2')])], 'fortran_order': False, 'shape': (3,), }", b"      "),
    "parentheses": b"\x93NUMPY\x01\x00" + (9999).to_bytes(2, "little") + b"(" * 9998 + b"\n",
    "long header": b"\x93NUMPY\x02\x00" + (2**32 - 1).to_bytes(4, "little") + b"{",
    "a call": npy("__import__('os').system('true')"),
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04K\x01.",
    "nothing": b"",
    "two dimensions": saved(np.zeros((2, 2), np.uint16)),
    "other type": saved(np.zeros(4, np.float32)),
}


@pytest.mark.parametrize("kind", HOSTILE_SHARDS)
# NumPy multiplies sizes before it looks at them.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("part", ["tokens", "sentences"])
def test_a_hostile_shard_is_refused(folder: Path, part: str, kind: str) -> None:
    name = f"{SHARD}.{part}.npy"
    with replaced(folder, name, HOSTILE_SHARDS[kind]), pytest.raises(DataError, match=rf"{name} is damaged"):
        Corpus.open(folder)


@pytest.mark.parametrize("change", ["falling", "huge", "negative", "late", "repeated"])
@pytest.mark.parametrize("part", ["sentences", "documents"])
def test_offsets_that_do_not_rise_are_refused(folder: Path, part: str, change: str) -> None:
    name = f"{SHARD}.{part}.npy"
    offsets = np.load(folder / name)
    place, value = {
        "falling": (2, 0),
        "huge": (2, 2**62),
        "negative": (2, -5),
        "late": (0, 1),
        "repeated": (2, offsets[1]),
    }[change]
    offsets[place] = value
    with replaced(folder, name, saved(offsets)), pytest.raises(DataError, match=rf"{name} .*do not rise from 0 to"):
        Corpus.open(folder)


def test_tokens_outside_the_vocabulary_are_refused(folder: Path) -> None:
    name = f"{SHARD}.tokens.npy"
    tokens = np.load(folder / name)
    with replaced(folder, name, saved(np.full_like(tokens, 65535))):
        corpus = Corpus.open(folder)
        with pytest.raises(DataError, match="the token 65535, but its vocabulary has"):
            Sampler(corpus, SamplerSettings(32), seed=1).batch(0, range(4))


def encode(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    encoder = TextEncoder(tokenizer, most_bytes=1 << 20)
    ids = encoder.encode(["Document 1 says \N{OWL}."])[0].tolist() + tokenizer.encode("one", "two").ids
    assert 0 <= min(ids) <= max(ids) < tokenizer.get_vocab_size()


TOKENIZER_FILES = ["tokenizer.json", "vocab.txt", "tokenizer_config.json"]


@pytest.fixture
def alone(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The tokenizer's files, of which `tokenizer.json` is only there if the test is of it."""
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    if request.getfixturevalue("name") != "tokenizer.json":
        (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("name", TOKENIZER_FILES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_tokenizer_is_used_or_refused(folder: Path, alone: Path, name: str, data: st.DataObject) -> None:
    (alone / name).write_bytes(data.draw(damaged((folder / "tokenizer" / name).read_bytes())))
    refusal(DataError, lambda: encode(alone))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tokenizer_of_hostile_values_is_used_or_refused(
    folder: Path, alone: Path, name: str, data: st.DataObject
) -> None:
    content = json.loads((folder / "tokenizer" / name).read_bytes())
    (alone / name).write_text(json.dumps(data.draw(damaged_json(content))))
    refusal(DataError, lambda: encode(alone))


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "its normalizer is 'Precompiled'"),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "its pre_tokenizer is 'FixedLength'"),
        ("pre_tokenizer", [], "its pre_tokenizer is"),
        ("model", {"type": "BPE"}, "its model is 'BPE'"),
        ("model", [], "it describes no tokenizer"),
    ],
)
def test_parts_that_are_not_of_a_bert_are_refused(
    folder: Path, tmp_path: Path, part: str, settings: object, message: str
) -> None:
    content = json.loads((folder / "tokenizer" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, part: settings}))
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_a_vocabulary_with_gaps_is_refused(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer" / "tokenizer.json").read_bytes())
    content["model"]["vocab"]["[UNK]"] = 4_000_000_000
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": []}))
    with pytest.raises(DataError, match="without a gap"):
        load_tokenizer(tmp_path)
