"""The corpus knows the file and the line of each document, and is the same corpus without them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lucid.data import HELD_OUT, TRAIN, Corpus, Manifest, load_tokenizer
from lucid.data.manifest import ORIGINS, record_files
from lucid.data.origins import Origins, agreement, inputs_of
from lucid.errors import DataError
from lucid.preparation import prepare, stages


def origin_by_number(folder: Path) -> dict[str, str]:
    """Return the origin of each document of all splits, by the number that its text holds."""
    tokenizer, found = load_tokenizer(folder / "tokenizer"), {}
    for split in Manifest.read(folder).splits:
        corpus, origins = Corpus.open(folder, split), Origins.open(folder, split)
        assert origins is not None
        documents = np.arange(corpus.document_count)
        starts = corpus.sentences.at(corpus.documents.at(np.arange(corpus.document_count + 1)))
        for start, stop, origin in zip(starts, starts[1:], origins.of(documents), strict=False):
            text = tokenizer.decode(corpus.tokens(np.arange(start, stop)).tolist())
            found[text.split()[1]] = origin
    return found


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Documents with numbers in several files, some left out: duplicates, and one that is too short."""
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    paragraphs = [f"number {number} stands here.\nit has two lines." for number in range(100, 160)]
    (folder / "a.txt").write_text("\n\n".join(paragraphs))
    records = [{"text": f"number {number} is a record."} for number in range(200, 240)]
    records[7:7] = [{"text": "x"}, records[3]]
    (folder / "inner" / "b.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_every_document_knows_its_file_and_line(
    texts: Path, tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PIECE_BYTES", 500)
    monkeypatch.setattr(stages, "TOKENS_PER_SHARD", 200)
    prepare([texts], tmp_path / "corpus", vocab_size=200, held_out=0.2, drop_duplicates=True, processes=processes)
    assert len(list((tmp_path / "corpus").glob("train-*.origins.npy"))) > 1
    expected = {str(100 + number): f"a.txt:{1 + 3 * number}" for number in range(60)}
    expected |= {str(200 + number): f"inner/b.jsonl:{1 + number + 2 * (number >= 7)}" for number in range(40)}
    assert origin_by_number(tmp_path / "corpus") == expected


def test_a_file_that_is_given_twice_is_two_inputs(texts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "a.txt"
    other.parent.mkdir()
    other.write_text("number 900 is elsewhere.\nit is.\n\nnumber 901 is elsewhere.\nit is.\n")
    prepare([texts / "a.txt", other], tmp_path / "corpus", vocab_size=200, held_out=0)
    manifest = Manifest.read(tmp_path / "corpus")
    assert [each.name for each in inputs_of(manifest, tmp_path / "corpus")] == ["a.txt", "a.txt"]
    assert origin_by_number(tmp_path / "corpus") | {"900": "a.txt:1", "901": "a.txt:4"} == origin_by_number(
        tmp_path / "corpus"
    )


@pytest.mark.parametrize(
    ("given", "name", "parts"),
    [
        ("x.txt", "x.txt", 1),
        ("./x.txt", "x.txt", 1),
        ("tr/x.txt", "x.txt", 2),
        ("/texts/tr/x.txt", "x.txt", 2),
        ("/texts/de/x.txt", "x.txt", 1),
        ("x.txt", "in/x.txt", 1),
        ("in/x.txt", "in/x.txt", 2),
        ("tr/in/x.txt", "in/x.txt", 3),
        ("/texts/in/x.txt", "in/x.txt", 2),
        ("/texts/tr/x.txt", "in/x.txt", 0),
        ("tr/x.txt", "in/x.txt", 0),
        ("ax.txt", "x.txt", 0),
        ("in", "in/x.txt", 0),
    ],
)
def test_a_path_is_that_of_an_input_if_one_ends_with_the_other(given: str, name: str, parts: int) -> None:
    assert agreement(given, "tr", name) == parts


def test_origins_do_not_change_what_corpus_it_is(texts: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "named-otherwise.txt"
    moved.parent.mkdir()
    moved.write_text("\n\n\n" + (texts / "a.txt").read_text())
    made = [
        prepare([path], tmp_path / str(number), vocab_size=200, held_out=0.1)
        for number, path in enumerate((texts / "a.txt", moved))
    ]
    assert made[0].identity == made[1].identity
    assert made[0].files != made[1].files


def test_a_corpus_of_an_earlier_version_opens_without_origins(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    made = prepare([texts], folder, vocab_size=200, held_out=0.2)
    kept = [name for name in made.files if ORIGINS not in name]
    for path in folder.glob(f"*.{ORIGINS}.npy"):
        path.unlink()
    with pytest.raises(DataError, match=r"origins\.npy is missing"):
        Corpus.open(folder)
    replace(made, files=record_files(folder, kept)).write(folder)
    assert Manifest.read(folder).identity == made.identity
    Corpus.open(folder).verify()
    assert Origins.open(folder, HELD_OUT) is None


def test_damaged_origins_are_named(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    prepare([texts], folder, vocab_size=200, held_out=0)
    path = folder / "train-00000.origins.npy"
    whole = np.load(path)
    np.save(path, whole + 1000)
    origins = Origins.open(folder, TRAIN)
    assert origins is not None
    with pytest.raises(DataError, match=r"is damaged \(a document comes from input 1000 of 2\)"):
        origins.of(np.array([0]))
    manifest = Manifest.read(folder)
    for inputs in (None, [3], [{}], "abc"):
        replace(manifest, made_from={"inputs": inputs}).write(folder)
        with pytest.raises(DataError, match=r"manifest\.json is damaged \(it does not name the inputs\)"):
            Origins.open(folder, TRAIN)
    manifest.write(folder)
    np.save(path, whole[1:])
    with pytest.raises(DataError, match=r"train-00000\.origins\.npy is damaged \(it holds int64\[\d+, 2\] instead of"):
        Origins.open(folder, TRAIN)
