"""Training on a corpus most of whose sequences are far shorter than what the settings allow: rows without padding."""

import numpy as np
import pytest
from texts import made_up_text

from lucid.data import Corpus, Sampler, SamplerSettings
from lucid.preparation import prepare


@pytest.fixture(scope="module")
def short_documents(tmp_path_factory):
    """A prepared corpus of documents of one to three sentences."""
    folder = tmp_path_factory.mktemp("short")
    (folder / "text.txt").write_text(made_up_text(300, seed=2, longest=3), encoding="utf-8")
    prepare([folder / "text.txt"], folder / "corpus", vocab_size=200, held_out=0.1)
    return folder / "corpus"


@pytest.fixture
def settings(short_documents):
    return (
        f"data.path={short_documents}", "data.sequence_length=128", "model.max_position_embeddings=128",
        "train.steps=20", "train.global_batch=8",
    )  # fmt: skip


def test_the_samples_are_of_many_lengths_and_mostly_padding(short_documents):
    sampler = Sampler(Corpus.open(short_documents), SamplerSettings(sequence_length=128), seed=0)
    lengths = sampler.batch(0, range(64)).attention_mask.sum(axis=1)
    assert lengths.mean() < 64
    assert len(set(lengths)) > 16


def test_the_loss_curve_does_not_depend_on_ranks_or_micro_batches(train, settings):
    one = train(1, "one", *settings)
    assert one[20] < one[1]
    for name, ranks, micro_batch in (("two", 2, 3), ("four", 4, 1)):
        other = train(ranks, name, *settings, f"train.micro_batch={micro_batch}")
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-4)


def test_under_the_exact_reduction_two_ranks_give_the_losses_of_one_bit_for_bit(train, settings):
    exact = (*settings, "train.reduction=exact", "train.micro_batch=2")
    assert train(1, "one", *exact) == train(2, "two", *exact)
