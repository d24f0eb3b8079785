"""The samples that are shown are those that the trainer computes, and every batch with a document's text is found."""

import shlex
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
from lucid.analysis.sightings import CorpusDocument, documents_at, documents_with, own_samples, random_samples
from lucid.data import Corpus, Manifest
from lucid.data.manifest import ORIGINS
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import CheckpointError, ConfigError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.preparation import prepare
from lucid.training.corpora import identity_of
from lucid.training.dealing import Dealer
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
                assert CorpusDocument(0, segment.document) in documents_at(samples, origin)


@pytest.mark.parametrize("run_file", ["pairs", "packed", "one segment", "two corpora, packed"], indirect=True)
def test_all_batches_with_a_document_are_found(run_file: Path) -> None:
    assert_all_found(run_file, range(1, STEPS + 1))


@pytest.mark.parametrize("run_file", ["two corpora"], indirect=True)
def test_all_batches_of_some_steps_with_a_document_are_found(run_file: Path) -> None:
    assert_all_found(run_file, range(5, 15))


def assert_all_found(run_file: Path, steps: range) -> None:
    samples = samples_of(run_file)
    own: dict[CorpusDocument, list[tuple[int, int]]] = {}
    random: dict[CorpusDocument, list[tuple[int, int]]] = {}
    for step in steps:
        for sample in shown(samples, step):
            for sequence in sample.sequences:
                for segment in sequence.segments:
                    found = random if segment.token_type == 1 and sequence.nsp_label == 1 else own
                    document = CorpusDocument(samples.names.index(sample.corpus), segment.document)
                    places = found.setdefault(document, [])
                    if (step, sample.row) not in places:
                        places.append((step, sample.row))
    assert bool(random) == samples.stretch.config.data.nsp
    for number, sampler in enumerate(samples.mixture.samplers):
        for document in (CorpusDocument(number, each) for each in range(min(sampler.corpus.document_count, 40))):
            for expected, search in ((own, own_samples), (random, random_samples)):
                places = [(found.step, found.row) for found in search(samples, document, steps)]
                assert places == expected.get(document, [])


@pytest.mark.parametrize("run_file", ["packed", "pairs"], indirect=True)
def test_each_rank_and_micro_batch_has_the_rows_that_are_named(run_file: Path) -> None:
    config = History.of(run_file, ["train.micro_batch=2"]).at(1).config
    run = open_run(config, SingleCommunicator())
    for size in (1, 2, 3, 4, 5, 6):
        places = Dealer(config, run.corpora.train, size).places(0, 0)
        for rank in range(size):
            run.communicator = SimpleNamespace(rank=rank, size=size, seconds_waited=0.0)  # type: ignore[assignment]
            for number, part in enumerate(next(iter(Trainer(run).batches(1))).micro_batches):
                assert {places[row] for row in part.samples.tolist()} == {(rank, number)}


@pytest.mark.parametrize("run_file", ["two corpora"], indirect=True)
def test_documents_are_found_by_their_text(other: Path, run_file: Path) -> None:
    samples = samples_of(run_file)
    with pytest.raises(ConfigError, match=r"--text holds '☃', which the run's tokenizer does not know: leave it out"):
        documents_with(samples, "ba ☃")
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


def without_origins(corpus: Path, copy: Path) -> Path:
    """Copy a corpus as an earlier version would have made it."""
    shutil.copytree(corpus, copy, ignore=shutil.ignore_patterns(f"*.{ORIGINS}.npy"))
    manifest = Manifest.read(corpus)
    files = {name: record for name, record in manifest.files.items() if f".{ORIGINS}." not in name}
    replace(manifest, files=files).write(copy)
    return copy


def samples_of_two(run_file: Path, one: Path, other: Path) -> Samples:
    return Samples(
        History.of(run_file, [f"data.path=[{{path: {one}, weight: 2}}, {{path: {other}, weight: 1}}]"]).at(1)
    )


@pytest.mark.parametrize("run_file", ["pairs"], indirect=True)
def test_a_corpus_without_origins_is_named_where_it_matters(
    run_file: Path, corpus_folder: Path, other: Path, tmp_path: Path
) -> None:
    old = without_origins(other, tmp_path / "old")
    samples = samples_of_two(run_file, corpus_folder, old)
    assert samples.without_origins == [old]
    with pytest.raises(ConfigError, match=rf"^an earlier version of lucid prepared {old} and did not note where"):
        documents_at(samples, "b.txt:1")
    with pytest.raises(
        ConfigError, match=r"were not made from c\.txt, but from made_up\.txt, a\.txt, b\.txt \(3 inputs"
    ):
        documents_at(samples, "c.txt:1")
    with pytest.raises(ConfigError, match=rf"^no document in {corpus_folder} begins at made_up\.txt:2; the last one"):
        documents_at(samples, "made_up.txt:2")
    both = samples_of_two(run_file, other, old)
    with pytest.raises(ConfigError, match=rf"begins at b\.txt:1; and an earlier version of lucid prepared {old} and"):
        documents_at(both, "b.txt:2")


@pytest.mark.parametrize("run_file", ["pairs"], indirect=True)
def test_inputs_of_one_name_are_told_apart_by_the_corpus_or_the_content(
    run_file: Path, other: Path, corpus_folder: Path, tmp_path: Path
) -> None:
    text = tmp_path / "b.txt"
    text.write_text(made_up_text(15, 4), encoding="utf-8")
    prepare([text], tmp_path / "more", tokenizer=corpus_folder / "tokenizer", held_out=0)
    samples = samples_of_two(run_file, other, tmp_path / "more")
    assert samples.names == ["corpus", "more"]
    found = []
    for line in (1, 3, 5):
        found += (all_found := documents_at(samples, f"/elsewhere/b.txt:{line}"))
        assert documents_at(samples, f"{'long' * 2000}/b.txt:{line}") == all_found
        assert documents_at(samples, f"b.txt:{line}") == all_found
        for corpus, paths in enumerate((["corpus/b.txt", other.parent / "texts" / "b.txt"], ["more/b.txt", text])):
            for path in paths:
                assert documents_at(samples, f"{path}:{line}") == [each for each in all_found if each.corpus == corpus]
    assert {document.corpus for document in found} == {0, 1}


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
    with pytest.raises(CheckpointError, match=rf"^the run in {config.run_folder} was trained with another corpus than"):
        Samples(replace(changed, corpus=run.corpora.identity))


@pytest.mark.parametrize("run_file", ["two corpora"], indirect=True)
def test_a_mixture_that_has_moved_is_found_as_the_message_says(run_file: Path, other: Path, tmp_path: Path) -> None:
    stretch = History.of(run_file, ["train.evaluate_also=[/nowhere]"]).at(1)
    stretch = replace(stretch, corpus=identity_of(Samples(stretch).mixture))
    (tmp_path / "now").symlink_to(other)
    text = run_file.read_text()
    run_file.write_text(text.replace(str(other), str(tmp_path / "before")))
    gone = replace(History.of(run_file).at(1), corpus=stretch.corpus)
    with pytest.raises(
        CheckpointError, match=rf"^the corpus of the run is not at {tmp_path / 'before'}: say"
    ) as refused:
        Samples(gone)
    (advice,) = shlex.split(str(refused.value).partition(", as in ")[2])
    there = History.of(run_file, [advice.replace("before", "now")]).at(1)
    Samples(replace(there, corpus=stretch.corpus))
