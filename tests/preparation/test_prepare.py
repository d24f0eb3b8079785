"""`prepare`: the corpus that it makes, when it does nothing, and the arguments that it refuses."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from lucid.cli.prepare import prepare as prepare_command
from lucid.data import Corpus, Manifest, load_tokenizer, tokenizer_hash
from lucid.errors import DataError
from lucid.preparation import prepare, stages
from lucid.preparation.inputs.omissions import Dropped
from lucid.preparation.inputs.sources import Source


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def two_line_documents(count: int) -> str:
    return "\n\n".join(f"Document {number} says this.\nIt is not long." for number in range(count))


def test_the_manifest_describes_the_folder(corpus_folder: Path) -> None:
    manifest = Manifest.read(corpus_folder)
    assert set(manifest.files) | {"manifest.json"} == set(contents(corpus_folder))
    assert sum(split.documents for split in manifest.splits.values()) == 150
    for name, split in manifest.splits.items():
        tokens, sentences, documents = (
            np.load(corpus_folder / f"{name}-00000.{part}.npy", mmap_mode="r", allow_pickle=False)
            for part in ("tokens", "sentences", "documents")
        )
        assert tokens.dtype == np.uint16
        assert (len(tokens), len(sentences) - 1, len(documents) - 1) == (split.tokens, split.sentences, split.documents)
        assert (documents[0], documents[-1], sentences[0], sentences[-1]) == (0, split.sentences, 0, split.tokens)
        assert (np.diff(documents) > 0).all()
        assert (np.diff(sentences) > 0).all()


def test_the_text_can_be_read_back_from_the_tokens(corpus_folder: Path, text_file: Path) -> None:
    tokenizer, corpus = load_tokenizer(corpus_folder / "tokenizer"), Corpus.open(corpus_folder)
    assert tokenizer_hash(tokenizer) == corpus.tokenizer_hash
    first = corpus.tokens(np.arange(int(corpus.sentences.at(np.asarray(1)))))
    assert tokenizer.decode(first.tolist()).replace(" .", ".") in text_file.read_text().lower()


def test_preparing_twice_gives_the_same_bytes(text_file: Path, corpus_folder: Path, tmp_path: Path) -> None:
    prepare([text_file], tmp_path / "again", vocab_size=200, held_out=0.1)
    assert contents(tmp_path / "again") == contents(corpus_folder)


def test_an_existing_corpus_is_left_alone(text_file: Path, tmp_path: Path) -> None:
    first = prepare([text_file], tmp_path / "corpus", vocab_size=200)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    said: list[str] = []
    assert (
        prepare([text_file], tmp_path / "corpus", vocab_size=200, report=lambda stage, done, total: said.append(stage))
        == first
    )
    assert said[-1] == f"{tmp_path / 'corpus'} holds this corpus already: nothing was done"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")} == times


def test_a_corpus_of_an_earlier_version_says_how_it_treats_case(text_file: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def again(**options: object) -> str:
        prepare([text_file], tmp_path / "corpus", report=lambda stage, done, total: said.append(stage), **options)  # type: ignore[arg-type]
        return said[-1]

    again(vocab_size=200)
    manifest = Manifest.read(tmp_path / "corpus")
    older = {name: value for name, value in manifest.made_from.items() if name not in ("normalisation", "case")}
    replace(manifest, made_from=older).write(tmp_path / "corpus")
    assert "nothing was done. An earlier version made it uncased and without accents; --ov" in again(vocab_size=200)
    assert again(vocab_size=200, overwrite=True).endswith("corpus holds the corpus")
    given = tmp_path / "tokenizer"
    shutil.copytree(tmp_path / "corpus" / "tokenizer", given)
    again(tokenizer=given, overwrite=True)
    assert again(tokenizer=given).endswith("nothing was done")


def test_another_corpus_is_replaced_on_request_only(text_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    first = prepare([text_file], output, vocab_size=200)
    with pytest.raises(DataError, match="which differs in vocab size: choose another folder, or pass --overwrite"):
        prepare([text_file], output, vocab_size=100)
    (tmp_path / "other.txt").write_text(two_line_documents(10))
    with pytest.raises(DataError, match="differs in inputs"):
        prepare([tmp_path / "other.txt"], output, vocab_size=200)
    second = prepare([tmp_path / "other.txt"], output, vocab_size=200, held_out=0, overwrite=True)
    assert second.identity != first.identity
    assert set(contents(output)) == {*second.files, "manifest.json"}
    Corpus.open(output).verify()


def test_a_tokenizer_can_be_given(text_file: Path, corpus_folder: Path, tmp_path: Path) -> None:
    manifest = prepare([text_file], tmp_path / "corpus", tokenizer=corpus_folder / "tokenizer", held_out=0.1)
    assert manifest.tokenizer_hash == Manifest.read(corpus_folder).tokenizer_hash
    assert manifest.identity == Manifest.read(corpus_folder).identity


@pytest.mark.parametrize(("documents", "held_out"), [(3, 1), (4, 2), (5, 2)])
def test_a_small_corpus_holds_out_something_and_says_so(tmp_path: Path, documents: int, held_out: int) -> None:
    (tmp_path / "a.txt").write_text(two_line_documents(documents))
    manifest = prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=100, held_out=0.0001)
    assert manifest.splits["held_out"].documents == held_out
    assert manifest.splits["train"].documents == documents - held_out
    app = typer.Typer()
    app.command()(prepare_command)
    # Prepared or found, its summary says the same.
    output = (
        CliRunner()
        .invoke(
            app,
            [str(tmp_path / "a.txt"), "-o", str(tmp_path / "corpus"), "--vocab-size", "100", "--held-out", "0.0001"],
        )
        .output
    )
    assert "--held-out 0.0001 selects too few of these documents, so more are held out." in output


def test_a_corpus_of_enough_documents_does_not_speak_of_its_fraction(corpus_folder: Path) -> None:
    assert "held_out_more" not in Manifest.read(corpus_folder).made_from


def test_the_same_text_is_held_out_at_any_place(tmp_path: Path) -> None:
    texts = two_line_documents(200).split("\n\n")
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    (tmp_path / "b.txt").write_text("\n\n".join(reversed(texts)))
    splits = [
        prepare([tmp_path / f"{name}.txt"], tmp_path / name, vocab_size=100, held_out=0.2).splits for name in "ab"
    ]
    assert splits[0]["held_out"].tokens == splits[1]["held_out"].tokens
    assert 20 < splits[0]["held_out"].documents < 60


def test_documents_too_short_for_two_segments_are_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(two_line_documents(3) + "\n\nx\n\n\x01\n\n")
    manifest = prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=100, held_out=0)
    assert manifest.splits["train"].documents == 3
    assert manifest.dropped == {"fewer than two tokens": 2}


def test_a_sample_has_a_document_that_is_not_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PIECE_BYTES", 50)  # a portion for each document
    texts = [f"{word} and {word}. Another {word}." for word in ("abc", "def", "ghi")]
    held_out = min(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    manifest = prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=64, sample_bytes=1)
    assert [split.documents for split in manifest.splits.values()] == [2, 1]
    first = next(text for text in texts if text != held_out)
    learnt = set("".join(load_tokenizer(tmp_path / "corpus" / "tokenizer").get_vocab()))
    assert {word[:3] for word in texts if set(word[:3]) <= learnt} == {first[:3]}


def test_a_sentence_without_end_is_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 1000 + "\n\n" + two_line_documents(2))
    prepare([tmp_path / "a.txt"], tmp_path / "corpus", vocab_size=100, held_out=0)
    sentences = np.load(tmp_path / "corpus" / "train-00000.sentences.npy")
    assert np.diff(sentences).max() == 128


def test_input_that_makes_no_corpus_is_refused(tmp_path: Path) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("A document. All alone.")
    two.write_text(two_line_documents(2))
    with pytest.raises(DataError, match="holds 1 document that can be used, and pretraining needs two or more"):
        prepare([one], tmp_path / "corpus")
    with pytest.raises(DataError, match="too few to hold one out"):
        prepare([two], tmp_path / "corpus")
    with pytest.raises(DataError, match="held_out is 1"):
        prepare([two], tmp_path / "corpus", held_out=1)
    with pytest.raises(DataError, match="within the input folder"):
        prepare([tmp_path], tmp_path / "corpus")
    with pytest.raises(DataError, match="is a file"):
        prepare([two], one)
    for size in (10, 10**20):
        with pytest.raises(DataError, match=r"too (small|large): take from 64 to 1,048,576"):
            prepare([two], tmp_path / "corpus", held_out=0, vocab_size=size)


def test_a_prepared_corpus_is_no_text(corpus_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a prepared corpus: name the text that it was made of"):
        prepare([corpus_folder], tmp_path / "corpus")


def test_a_corpus_stays_if_another_vocabulary_is_refused(text_file: Path, tmp_path: Path) -> None:
    first = prepare([text_file], tmp_path / "corpus", vocab_size=200)
    with pytest.raises(DataError, match="too small"):
        prepare([text_file], tmp_path / "corpus", vocab_size=10, overwrite=True)
    assert prepare([text_file], tmp_path / "corpus", vocab_size=200) == first


def test_the_command_prepares_and_prints_a_summary(text_file: Path, tmp_path: Path) -> None:
    application = typer.Typer()
    application.command()(prepare_command)
    arguments = [str(text_file), "--output", str(tmp_path / "corpus"), "--vocab-size", "200"]
    first = CliRunner().invoke(application, arguments)
    assert first.exit_code == 0
    counts = json.loads((tmp_path / "corpus" / "manifest.json").read_text())["splits"]["train"]
    assert f"{counts['tokens']:,}" in first.output
    assert str(tmp_path / "corpus") in first.output
    assert "nothing was done" in CliRunner().invoke(application, arguments).output
    assert "holds another corpus" in str(CliRunner().invoke(application, [*arguments[:-1], "100"]).exception)


@pytest.mark.parametrize("earlier", [False, True])
def test_the_summary_names_a_file_whose_name_has_two_lines(
    earlier: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note_raw(dropped: Dropped, source: Source, line: int, reason: str, detail: str) -> None:
        dropped.counts[reason] = 1
        dropped.lines.append(f"{source.name}\t{reason}")

    if earlier:  # a corpus whose list an earlier version wrote
        monkeypatch.setattr(Dropped, "note", note_raw)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(two_line_documents(20))
    (tmp_path / "text" / "a\nb.pdf").write_bytes(b"%PDF")
    application = typer.Typer()
    application.command()(prepare_command)
    arguments = [str(tmp_path / "text"), "--output", str(tmp_path / "corpus"), "--vocab-size", "100"]
    for _ in range(2):
        finished = CliRunner().invoke(application, arguments)
        assert finished.exit_code == 0
        assert f"1 another kind of file, such as {'b.pdf' if earlier else 'a b.pdf'}" in finished.output
