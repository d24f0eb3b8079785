"""A corpus on disk: several shards behave as one, and errors name the damaged file."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid.data import Corpus, Sampler, SamplerSettings
from lucid.data.shards import Boundaries
from lucid.errors import DataError
from lucid.preparation import prepare, stages


@pytest.fixture
def copied(corpus_folder: Path, tmp_path: Path) -> Path:
    """A copy of the corpus that may be damaged."""
    return shutil.copytree(corpus_folder, tmp_path / "copied")


def flip_a_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_corpus_has_the_counts_of_its_manifest(corpus: Corpus, corpus_folder: Path) -> None:
    tokens = np.load(corpus_folder / "train-00000.tokens.npy")
    assert (corpus.folder, corpus.split) == (corpus_folder, "train")
    assert corpus.token_count == len(tokens)
    frequencies = corpus.token_frequencies()
    assert (frequencies.dtype, frequencies.shape) == (np.int64, (corpus.vocab_size,))
    assert frequencies.sum() == corpus.token_count
    assert frequencies[tokens[0]] == (tokens == tokens[0]).sum()
    corpus.verify()


def test_both_splits_share_the_identity_and_the_tokenizer(corpus: Corpus, corpus_folder: Path) -> None:
    held_out = Corpus.open(corpus_folder, "held_out")
    assert (held_out.identity, held_out.tokenizer_hash) == (corpus.identity, corpus.tokenizer_hash)
    assert held_out.document_count + corpus.document_count == 150


def test_several_shards_give_the_same_samples_as_one(
    text_file: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PIECE_BYTES", 1000)
    monkeypatch.setattr(stages, "TOKENS_PER_SHARD", 2000)
    prepare([text_file], tmp_path / "corpus", vocab_size=200, held_out=0.1)
    assert len(list((tmp_path / "corpus").glob("train-*.tokens.npy"))) > 3
    several = Corpus.open(tmp_path / "corpus")
    assert (several.token_frequencies() == corpus.token_frequencies()).all()
    for settings in (SamplerSettings(64), SamplerSettings(32, nsp=False)):
        one, other = (
            Sampler(corpus, settings, 3).batch(5, range(200)),
            Sampler(several, settings, 3).batch(5, range(200)),
        )
        assert (one.input_ids == other.input_ids).all()
        assert (one.nsp_labels == other.nsp_labels).all()


@given(st.lists(st.lists(st.integers(1, 5), max_size=6), min_size=1, max_size=5).filter(any))
def test_boundaries_in_pieces_equal_those_of_the_whole(pieces: list[list[int]]) -> None:
    boundaries = Boundaries([np.cumsum([0, *piece]) for piece in pieces])
    whole = np.cumsum([0, *(length for piece in pieces for length in piece)])
    offsets = np.arange(whole[-1] + 1)
    assert boundaries.count == len(whole) - 1
    assert (boundaries.at(np.arange(len(whole))) == whole).all()
    assert (boundaries.first_from(offsets) == np.searchsorted(whole, offsets, side="left")).all()
    assert (boundaries.last_up_to(offsets) == np.searchsorted(whole, offsets, side="right") - 1).all()


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: make it with `lucid prepare"):
        Corpus.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="has no manifest"):
        Corpus.open(tmp_path)


def test_a_missing_split_is_refused(corpus_of: Callable[..., Corpus]) -> None:
    folder = corpus_of("One here. Two here.\n\nThree there. Four there.").folder
    with pytest.raises(DataError, match="no split 'held_out', only train"):
        Corpus.open(folder, "held_out")


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "train-00000.sentences.npy").unlink()
    with pytest.raises(DataError, match=r"train-00000\.sentences\.npy is missing"):
        Corpus.open(copied)


def test_a_truncated_file_is_named(copied: Path) -> None:
    path = copied / "train-00000.tokens.npy"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train-00000\.tokens\.npy has \d+ bytes instead of \d+"):
        Corpus.open(copied)


def test_a_damaged_header_is_named(copied: Path) -> None:
    flip_a_byte(copied / "train-00000.tokens.npy", 0)
    with pytest.raises(DataError, match=r"train-00000\.tokens\.npy is damaged"):
        Corpus.open(copied)


@pytest.mark.parametrize("name", ["train-00000.tokens.npy", "held_out-00000.sentences.npy", "tokenizer/vocab.txt"])
def test_a_flipped_byte_is_found_by_verification(copied: Path, name: str) -> None:
    flip_a_byte(copied / name, -1)
    corpus = Corpus.open(copied)
    with pytest.raises(DataError, match=f"{name} was altered"):
        corpus.verify()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{", "[", "is damaged"),
        ('"documents": ', '"documents": 1', "its checksum differs"),
        ('"format_version": 2', '"format_version": 1', "another version of lucid"),
        ('"sha256"', '"sha-256"', "is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(copied: Path, old: str, new: str, message: str) -> None:
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        Corpus.open(copied)


def test_preparing_over_a_damaged_corpus_names_the_damage(copied: Path, text_file: Path) -> None:
    flip_a_byte(copied / "train-00000.tokens.npy", -1)
    with pytest.raises(DataError, match="was altered"):
        prepare([text_file], copied, vocab_size=200, held_out=0.1)
    prepare([text_file], copied, vocab_size=200, held_out=0.1, overwrite=True)
    Corpus.open(copied).verify()


@pytest.mark.parametrize("change", ["cut short", "written to", "removed"])
def test_a_corpus_that_has_changed_gives_no_batch(copied: Path, change: str) -> None:
    path = copied / "train-00000.tokens.npy"
    corpus = Corpus.open(copied)
    sampler = Sampler(corpus, SamplerSettings(64), seed=1)
    if change == "cut short":
        # Reading what is mapped beyond the end would end the process: it has to be refused before.
        os.truncate(path, 100)
    elif change == "written to":
        flip_a_byte(path, -1)
    else:
        path.unlink()
    with pytest.raises(DataError, match=r"train-00000\.tokens\.npy was .* while it was being read"):
        sampler.batch(0, range(8))
