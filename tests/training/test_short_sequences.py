"""Training on a corpus whose sequences are mostly far shorter than the settings allow: token rows without padding."""

import numpy as np
import pytest
from texts import made_up_text

from lucid.data import Corpus, Sampler, SamplerSettings
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.preparation import prepare
from lucid.training.micro_batches import LocalBatch
from lucid.training.step_message import ControlMessage

EXACT = ("train.reduction=exact", "train.micro_batch=2")


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


def test_the_samples_have_many_lengths_and_are_mostly_padding(short_documents):
    sampler = Sampler(Corpus.open(short_documents), SamplerSettings(sequence_length=128), seed=0)
    lengths = sampler.batch(0, range(64)).attention_mask.sum(axis=1)
    assert lengths.mean() < 64
    assert len(set(lengths)) > 16


def test_next_sentence_losses_are_divided_by_the_number_of_pairs_not_of_rows(short_documents):
    settings = SamplerSettings(sequence_length=128, packing=True)
    batch = Sampler(Corpus.open(short_documents), settings, seed=0).batch(0, range(8))
    local_batch = LocalBatch.split(batch, micro_batch=3)
    masked_tokens, pairs, _, _ = ControlMessage(SingleCommunicator(), local_batch, seconds=0.0, stop=False).wait()
    assert masked_tokens == batch.masked_tokens
    assert pairs == batch.sequence_ids.max(axis=1).sum() > 12


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_curve_does_not_depend_on_ranks_or_micro_batches(undisturbed, losses, settings, packing):
    settings = (*settings, f"data.packing={packing}")
    one = losses(undisturbed(1, *settings))
    assert one[20] < one[1]
    for ranks, micro_batch in ((2, 3), (4, 1)):
        other = losses(undisturbed(ranks, *settings, f"train.micro_batch={micro_batch}"))
        np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_under_the_exact_reduction_two_ranks_give_the_losses_of_one_bit_for_bit(undisturbed, losses, settings, packing):
    exact = (*settings, *EXACT, f"data.packing={packing}")
    assert losses(undisturbed(1, *exact)) == losses(undisturbed(2, *exact))


def test_a_stopped_run_on_packed_rows_resumes_bit_for_bit(undisturbed, losses, train, train_until, settings):
    exact = (*settings, *EXACT, "data.packing=True")
    train_until(2, "stopped", 7, *exact)
    assert train(1, "stopped", *exact) == losses(undisturbed(1, *exact))
