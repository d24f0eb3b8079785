"""The samples of a run depend neither on ranks, micro-batches, threads and shards nor on stops."""

import random
import shutil
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid.backend import Array
from lucid.data import Batch, Corpus, Loader, Manifest, Sampler, SamplerSettings
from lucid.data.manifest import Shard, record_files
from lucid.errors import DataError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.preparation import prepare, stages

# The documents are short: without pairs each is one sample, whole.
WHOLE = SamplerSettings(sequence_length=128, short_sequence_probability=0, nsp=False)
PAIRS = SamplerSettings(sequence_length=16, short_sequence_probability=0.3)
DOCUMENTS = 23


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    """The same documents in one shard, in a few, and in one a document."""
    folder = tmp_path_factory.mktemp("shared")
    draw = random.Random(3)
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "house", "and", "then", "it", "slept"]
    sentences = [
        [f"Number {number} {' '.join(draw.choices(words, k=draw.randint(2, 9)))}." for _ in range(draw.randint(1, 4))]
        for number in range(DOCUMENTS)
    ]
    (folder / "a.txt").write_text("\n\n".join(" ".join(document) for document in sentences))
    corpora = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "PIECE_BYTES", 1)
        for tokens_per_shard in (1 << 20, 200, 1):
            patch.setattr(stages, "TOKENS_PER_SHARD", tokens_per_shard)
            output = folder / str(tokens_per_shard)
            prepare([folder / "a.txt"], output, vocab_size=100, held_out=0)
            corpora.append(Corpus.open(output))
    return corpora


@dataclass(frozen=True)
class Sharing:
    """How a global batch is shared out."""

    shards: int
    ranks: int
    share: int
    micro_batch: int
    workers: int

    @property
    def global_batch(self) -> int:
        return self.ranks * self.share

    def batches(self, sampler: Sampler, first_sample: int, steps: int) -> list[Batch]:
        """Return the global batches of some steps, put together from what the ranks' loaders give them."""
        parts = [self._of_rank(sampler, rank, first_sample, steps) for rank in range(self.ranks)]
        return [Batch.joined([batch for rank in parts for batch in rank[step]]) for step in range(steps)]

    def _of_rank(self, sampler: Sampler, rank: int, first_sample: int, steps: int) -> list[list[Batch]]:
        """Return the micro-batches of each step: of the global batch a rank has the rows that the trainer gives it."""
        rows = range(rank * self.share, (rank + 1) * self.share)
        with Loader(
            lambda step: sampler.batch(first_sample + step * self.global_batch, rows), 0, steps, self.workers
        ) as loader:
            starts = range(0, self.share, self.micro_batch)
            return [[batch.slice(start, start + self.micro_batch) for start in starts] for batch in loader]


sharings = st.builds(
    Sharing,
    shards=st.integers(0, 2),
    ranks=st.integers(1, 5),
    share=st.integers(1, 7),
    micro_batch=st.integers(1, 7),
    workers=st.integers(0, 3),
)


def texts(batch: Batch) -> list[tuple[int, ...]]:
    ids: Array = np.where(batch.mlm_labels == IGNORE_INDEX, batch.input_ids, batch.mlm_labels)
    return [tuple(row[mask].tolist()) for row, mask in zip(ids, batch.attention_mask, strict=True)]


def assert_equal(batch: Batch, other: Batch) -> None:
    for field in fields(Batch):
        if field.name != "samples":
            assert np.array_equal(getattr(batch, field.name), getattr(other, field.name)), field.name


@settings(max_examples=40)
@given(sharing=sharings, seed=st.integers(0, 2**63 - 1))
def test_every_sample_comes_once_in_an_epoch(corpora: list[Corpus], sharing: Sharing, seed: int) -> None:
    sampler = Sampler(corpora[sharing.shards], WHOLE, seed)
    assert sampler.samples_per_epoch == DOCUMENTS
    steps = -(-3 * DOCUMENTS // sharing.global_batch)
    run = texts(Batch.joined(sharing.batches(sampler, 0, steps)))
    for epoch in range(3):
        seen = Counter(run[epoch * DOCUMENTS : (epoch + 1) * DOCUMENTS])
        assert len(seen) == DOCUMENTS
        assert set(seen.values()) == {1}


@settings(max_examples=40)
@given(sharing=sharings, first_sample=st.integers(0, 10_000), nsp=st.booleans(), packing=st.booleans())
def test_the_division_of_samples_does_not_change_them(
    corpora: list[Corpus], sharing: Sharing, first_sample: int, nsp: bool, packing: bool
) -> None:
    how = replace(PAIRS, nsp=nsp, packing=packing)
    shared = sharing.batches(Sampler(corpora[sharing.shards], how, 5), first_sample, steps=2)
    alone = Sampler(corpora[0], how, 5)
    singles = [alone.batch(first_sample + sample, range(1)) for sample in range(2 * sharing.global_batch)]
    assert_equal(Batch.joined(shared), Batch.joined(singles))
    for batch in shared:
        assert batch.samples.tolist() == list(range(sharing.global_batch))


@settings(max_examples=40)
@given(before=sharings, after=sharings, step=st.integers(0, 9), more=st.integers(1, 3), packing=st.booleans())
def test_a_run_resumed_at_any_step_has_the_remaining_batches(
    corpora: list[Corpus], before: Sharing, after: Sharing, step: int, more: int, packing: bool
) -> None:
    how = replace(PAIRS, packing=packing)
    undisturbed = Batch.joined(before.batches(Sampler(corpora[before.shards], how, 7), 0, step + more))
    consumed = step * before.global_batch
    resumed = Batch.joined(after.batches(Sampler(corpora[after.shards], how, 7), consumed, more))
    both = min(more * before.global_batch, more * after.global_batch)
    assert_equal(undisturbed.slice(consumed, consumed + both), resumed.slice(0, both))


def add_empty_shard(folder: Path, index: int) -> None:
    """Put a shard that holds nothing among the others."""
    empty = Shard("train-empty", documents=0, sentences=0, tokens=0)
    for name, dtype, length in zip(empty.files, (np.uint16, np.int64, np.int64), (0, 1, 1), strict=True):
        np.save(folder / name, np.zeros(length, dtype))
    manifest = Manifest.read(folder)
    split = manifest.splits["train"]
    shards = (*split.shards[:index], empty, *split.shards[index:])
    files = record_files(folder, [*manifest.files, *empty.files])
    replace(manifest, splits={"train": replace(split, shards=shards)}, files=files).write(folder)


@pytest.mark.parametrize("index", [0, 1, -1])
def test_an_empty_shard_changes_nothing(corpora: list[Corpus], tmp_path: Path, index: int) -> None:
    folder = shutil.copytree(corpora[1].folder, tmp_path / "corpus")
    add_empty_shard(folder, index if index >= 0 else len(Manifest.read(folder).splits["train"].shards))
    corpus = Corpus.open(folder)
    corpus.verify()
    assert (corpus.token_frequencies() == corpora[0].token_frequencies()).all()
    for how in (WHOLE, PAIRS):
        assert_equal(Sampler(corpus, how, 1).batch(0, range(100)), Sampler(corpora[0], how, 1).batch(0, range(100)))


@pytest.mark.parametrize("shards", ["none", "an empty one"])
def test_an_empty_split_is_refused(corpora: list[Corpus], tmp_path: Path, shards: str) -> None:
    folder = shutil.copytree(corpora[0].folder, tmp_path / "corpus")
    manifest = Manifest.read(folder)
    nothing = replace(manifest.splits["train"], documents=0, sentences=0, tokens=0, shards=(), words=0, unknown=0)
    replace(manifest, splits={"train": nothing}).write(folder)
    if shards == "an empty one":
        add_empty_shard(folder, 0)
    with pytest.raises(DataError, match="has no documents in its split 'train'"):
        Corpus.open(folder)
