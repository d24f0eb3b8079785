"""The samples that are shown are those that the trainer computes, and every batch with a document's text is found."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from small_run import SETTINGS
from texts import made_up_text

from lucid.analysis.samples import Sample, Samples
from lucid.analysis.sightings import Document, documents_at, documents_with, own_samples, random_samples
from lucid.data import Corpus
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import CheckpointError, ConfigError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.preparation import prepare
from lucid.training.history import History
from lucid.training.setup import open_run
from lucid.training.trainer import Trainer

STEPS, BATCH = 18, 12
KINDS = {
    "pairs": {},
    "packed": {"packing": True, "short_sequence_probability": 0.4},
    "whole words": {"whole_word_mask": True},
    "one segment": {"nsp": False},
    "two corpora": {"short_sequence_probability": 0.2},
    "two corpora, packed": {"packing": True},
}


@pytest.fixture(scope="module")
def other(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus with the tokenizer of the other one, of two files."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "texts").mkdir()
    for seed, name in ((2, "a.txt"), (3, "b.txt")):
        (folder / "texts" / name).write_text(made_up_text(15, seed), encoding="utf-8")
    prepare([folder / "texts"], folder / "corpus", tokenizer=corpus_folder / "tokenizer", held_out=0.2)
    return folder / "corpus"


@pytest.fixture(params=KINDS)
def run_file(request: pytest.FixtureRequest, corpus_folder: Path, other: Path, tmp_path: Path) -> Path:
    """The settings of a run of several epochs."""
    two = [{"path": str(other), "weight": 1}, {"path": str(corpus_folder), "weight": 2.5}]
    data = {"path": two if "two" in request.param else str(other), "sequence_length": 32, **KINDS[request.param]}
    train = {**SETTINGS["train"], "steps": STEPS, "global_batch": BATCH}
    settings = {**SETTINGS, "data": data, "train": train, "run_folder": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "run.yaml"


def samples_of(run_file: Path) -> Samples:
    return Samples(History.of(run_file).at(1))


def shown(samples: Samples, step: int) -> Iterator[Sample]:
    return samples.samples(step, samples.batch(step, range(BATCH)))


def test_the_shown_samples_are_the_trainers_batches(run_file: Path) -> None:
    samples = samples_of(run_file)
    ids = samples.tokenizer.token_to_id
    run = open_run(samples.stretch.config, SingleCommunicator())
    for step, local in enumerate(Trainer(run).batches(STEPS), start=1):
        if step not in (1, 2, STEPS):
            continue
        batch = local.batch
        labels = iter(batch.nsp_labels.tolist())
        for row, sample in enumerate(shown(samples, step)):
            tokens = [
                (token_id, segment.token_type, number, label)
                for number, sequence in enumerate(sample.sequences, start=1)
                for segment in sequence.segments
                for token_id, label in (
                    (ids(token.input), IGNORE_INDEX if token.label is None else ids(token.label))
                    for token in segment.tokens
                )
            ]
            arrays = batch.input_ids, batch.token_type_ids, batch.sequence_ids, batch.mlm_labels
            used = int(batch.attention_mask[row].sum())
            assert tokens == list(zip(*(array[row, :used].tolist() for array in arrays), strict=True))
            assert sample.padding == batch.input_ids.shape[1] - used
            for sequence in sample.sequences:
                label = next(labels)
                assert sequence.nsp_label == (None if label == IGNORE_INDEX else label)
            assert sample.row == row


@pytest.mark.parametrize("run_file", ["pairs", "two corpora, packed"], indirect=True)
def test_the_text_of_a_segment_is_that_of_its_document(run_file: Path) -> None:
    samples = samples_of(run_file)
    for sample in shown(samples, 3):
        corpus = samples.mixture.samplers[samples.names.index(sample.corpus)].corpus
        for segment in (segment for sequence in sample.sequences for segment in sequence.segments):
            text = [token.label or token.input for token in segment.tokens if token.input not in ("[CLS]", "[SEP]")]
            found = corpus.document_of(corpus.find(np.array([samples.tokenizer.token_to_id(token) for token in text])))
            assert segment.document in found
            origin = segment.origin
            assert origin is not None
            if sample.corpus == samples.names[0]:
                assert Document(0, segment.document) in documents_at(samples, origin)


@pytest.mark.parametrize("run_file", ["pairs", "packed", "one segment", "two corpora, packed"], indirect=True)
def test_all_batches_with_a_document_are_found(run_file: Path) -> None:
    assert_all_found(run_file, range(1, STEPS + 1))


@pytest.mark.parametrize("run_file", ["two corpora"], indirect=True)
def test_all_batches_of_some_steps_with_a_document_are_found(run_file: Path) -> None:
    assert_all_found(run_file, range(5, 15))


def assert_all_found(run_file: Path, steps: range) -> None:
    samples = samples_of(run_file)
    own: dict[Document, list[tuple[int, int]]] = {}
    random: dict[Document, list[tuple[int, int]]] = {}
    for step in steps:
        for sample in shown(samples, step):
            for sequence in sample.sequences:
                for segment in sequence.segments:
                    found = random if segment.token_type == 1 and sequence.nsp_label == 1 else own
                    document = Document(samples.names.index(sample.corpus), segment.document)
                    places = found.setdefault(document, [])
                    if (step, sample.row) not in places:
                        places.append((step, sample.row))
    assert bool(random) == samples.stretch.config.data.nsp
    for number, sampler in enumerate(samples.mixture.samplers):
        for document in (Document(number, each) for each in range(min(sampler.corpus.document_count, 40))):
            for expected, search in ((own, own_samples), (random, random_samples)):
                places = [(found.step, found.row) for found in search(samples, document, steps)]
                assert places == expected.get(document, [])


@pytest.mark.parametrize("run_file", ["packed"], indirect=True)
def test_each_rank_and_micro_batch_has_the_rows_that_are_named(run_file: Path) -> None:
    config = History.of(run_file, ["train.micro_batch=2"]).at(1).config
    run = open_run(config, SingleCommunicator())
    for size in (1, 2, 3, 4, 6):
        for rank in range(size):
            run.communicator = SimpleNamespace(rank=rank, size=size)  # type: ignore[assignment]
            for number, part in enumerate(next(iter(Trainer(run).batches(1))).micro_batches):
                assert {config.place_of(row, size) for row in part.samples.tolist()} == {(rank, number)}


@pytest.mark.parametrize("run_file", ["two corpora"], indirect=True)
def test_documents_are_found_by_their_text(other: Path, run_file: Path) -> None:
    samples = samples_of(run_file)
    texts = (other.parent / "texts" / "b.txt").read_text().split("\n\n")
    held_out = Corpus.open(other, "held_out")
    found = [documents_with(samples, text) for text in texts]
    # Those that are held out are not found.
    assert {len(documents) for documents in found} == {0, 1}
    assert sum(map(len, found)) >= len(texts) - held_out.document_count
    for number, documents in enumerate(found):
        assert documents_at(samples, f"b.txt:{1 + 2 * number}") == documents
        assert documents_at(samples, f"somewhere/b.txt:{1 + 2 * number}") == documents


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("b.txt:2", r"begins at b\.txt:2; the last one before it begins at b\.txt:1"),
        ("c.txt:1", r"was not made from c\.txt, but from .* \(\d inputs in all\)"),
        ("b.txt", "FILE:LINE"),
        (":3", "FILE:LINE"),
        ("b.txt:-3", "FILE:LINE"),
    ],
)
@pytest.mark.parametrize("run_file", ["pairs"], indirect=True)
def test_places_where_no_document_begins_are_refused(run_file: Path, place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        documents_at(samples_of(run_file), place)


@pytest.mark.parametrize("run_file", ["pairs"], indirect=True)
def test_a_corpus_that_is_another_one_now_is_refused(
    run_file: Path, other: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(other, tmp_path / "moved")
    config = History.of(run_file).at(1).config
    run = open_run(config, SingleCommunicator())
    stretch = History.of(run_file).at(1)
    Samples(replace(stretch, corpus=run.corpora.identity))
    moved = History.of(run_file, [f"data.path={tmp_path / 'moved'}"]).at(1)
    Samples(replace(moved, corpus=run.corpora.identity))
    changed = History.of(run_file, [f"data.path={corpus_folder}"]).at(1)
    with pytest.raises(CheckpointError, match="was trained with another corpus than"):
        Samples(replace(changed, corpus=run.corpora.identity))
