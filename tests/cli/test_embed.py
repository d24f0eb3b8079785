"""`lucid embed`, and exports for sentence-transformers: one vector for each text, whatever computes it."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from isolation import REPOSITORY
from safetensors.numpy import load_file, save_file

GOLDEN = REPOSITORY / "tests/golden"
SENTENCES = json.loads((GOLDEN / "sentence_vectors.json").read_text(encoding="utf-8"))
CHECKPOINT = GOLDEN / "run_0.1.0/run/checkpoints/0001-00000004"
TEXTS = ["ba co.", "", "du fe gi ka lo mu ne pi ra so tu ve zi", "Ba CO!", "unknown: \N{OWL}"]


@pytest.fixture
def model(tmp_path):
    """The model of the golden vectors, without files of sentence-transformers."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(CHECKPOINT / name, folder)
    return folder


@pytest.fixture
def embed(lucid, tmp_path):
    """A function that embeds texts, a line each, and returns the vectors."""

    def run(folder, *options, texts=TEXTS):
        (tmp_path / "texts.txt").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        code, _, errors = lucid("embed", folder, tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy", *options)
        assert (code, errors) == (0, "")
        return np.load(tmp_path / "vectors.npy")

    return run


def add_files(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("kind", SENTENCES["kinds"])
def test_a_folder_of_sentence_transformers_gives_its_vectors(kind, model, embed, lucid, tmp_path):
    golden = SENTENCES["kinds"][kind]
    add_files(model, golden["files"])
    # Newer versions note the longest text here alone.
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": SENTENCES["longest"]}))
    vectors = embed(model, texts=SENTENCES["texts"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, golden["vectors"], atol=2e-6)
    # So does what is exported of it, which a second export keeps.
    for number, options in enumerate([(), ("--sentence-transformers",)]):
        assert lucid("export", model, tmp_path / f"export{number}", *options)[0] == 0
        assert np.array_equal(embed(tmp_path / f"export{number}", texts=SENTENCES["texts"]), vectors)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_an_export_for_sentence_transformers_has_the_vectors_of_its_run(pooling, embed, lucid, run_folder, tmp_path):
    vectors = embed(run_folder, "--pooling", pooling)
    code, _, _ = lucid("export", run_folder, tmp_path / "model", "--sentence-transformers", "--pooling", pooling)
    assert code == 0
    assert np.array_equal(embed(tmp_path / "model"), vectors)
    flags = json.loads((tmp_path / "model/1_Pooling/config.json").read_text())
    assert flags["pooling_mode_mean_tokens"] == (pooling == "mean")
    assert flags["pooling_mode_cls_token"] == (pooling == "first")
    assert flags["word_embedding_dimension"] == 16
    assert json.loads((tmp_path / "model/sentence_bert_config.json").read_text())["max_seq_length"] == 32


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_sentence_transformers_opens_an_export_and_computes_the_same(pooling, embed, lucid, run_folder, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    lucid("export", run_folder, tmp_path / "model", "--sentence-transformers", "--pooling", pooling)
    vectors = library.SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(tmp_path / "model"), vectors, atol=1e-5)


def test_vectors_do_not_depend_on_the_texts_around(embed, run_folder):
    many = [f"{text} {'ba ' * (number % 40)}" for number in range(120) for text in TEXTS]
    vectors = embed(run_folder, texts=many)
    assert vectors.shape == (600, 16)
    for number in (0, 1, 317, 599):
        np.testing.assert_allclose(embed(run_folder, texts=[many[number]])[0], vectors[number], atol=1e-5)


def test_any_number_of_ranks_writes_the_same_bytes(on_ranks, run_folder, tmp_path):
    (tmp_path / "texts.txt").write_text("".join(f"ba co {'du ' * (number % 50)}\n" for number in range(300)))
    for ranks in (1, 2, 3):
        finished = on_ranks(ranks, "embed", run_folder, tmp_path / "texts.txt", "-o", tmp_path / f"{ranks}.npy")
        assert finished.returncode == 0, finished.stdout
        assert finished.stdout.count("holds 300 vectors of 16 numbers") == 1
        assert "; 126 texts were cut to 32 tokens" in finished.stdout
    assert len({(tmp_path / f"{ranks}.npy").read_bytes() for ranks in (1, 2, 3)}) == 1


def test_a_mistake_is_one_sentence_from_several_ranks(on_ranks, run_folder, tmp_path):
    (tmp_path / "texts.jsonl").write_text('{"text": "ba co"}\n' * 400 + '{"body": "du"}\n')
    finished = on_ranks(2, "embed", run_folder, tmp_path / "texts.jsonl", "-o", tmp_path / "vectors.npy")
    assert finished.returncode == 2
    assert (
        finished.stdout == f"lucid: {tmp_path}/texts.jsonl:401: no text: each record needs a field (--text-field) "
        "that is a string\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_the_beginning_of_a_long_text_is_enough(embed, run_folder):
    words = "ba co du fe gi ka lo"
    beginning, whole, spaced = embed(run_folder, texts=[words * 10, words * 10 + " zi" * 20_000, f"{' ' * 999}{words}"])
    assert np.array_equal(beginning, whole)
    np.testing.assert_allclose(spaced, embed(run_folder, texts=[words])[0], atol=1e-5)
    # Without a space the whole text is one unknown word.
    np.testing.assert_allclose(*embed(run_folder, texts=["ba" * 20_000, "\N{OWL}"]), atol=1e-5)


def test_records_rows_and_the_standard_input_are_texts_too(embed, lucid, run_folder, tmp_path, monkeypatch):
    texts = [text for text in TEXTS if text]
    expected = embed(run_folder, texts=texts)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    (tmp_path / "a.csv").write_text("body\n" + "".join(f'"{text}"\n' for text in texts), encoding="utf-8")
    for name in ("a.jsonl", "a.csv"):
        lucid("embed", run_folder, tmp_path / name, "--text-field", "body", "-o", tmp_path / "other.npy")
        assert np.array_equal(np.load(tmp_path / "other.npy"), expected)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(texts).encode())))
    assert lucid("embed", run_folder, "-", "-o", tmp_path / "third.npy")[0] == 0
    assert np.array_equal(np.load(tmp_path / "third.npy"), expected)


def test_lines_of_json_have_the_numbers_of_the_array(embed, lucid, run_folder, tmp_path):
    vectors = embed(run_folder, "--normalize")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    lucid("embed", run_folder, tmp_path / "texts.txt", "-o", tmp_path / "vectors.jsonl", "--normalize")
    lines = [json.loads(line) for line in (tmp_path / "vectors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert np.array_equal(np.array([line["vector"] for line in lines], np.float32), vectors)


def test_what_lucid_does_not_compute_is_refused_unless_pooling_is_chosen(embed, lucid, model, tmp_path):
    files = json.loads(json.dumps(SENTENCES["kinds"]["mean"]["files"]))
    files["1_Pooling/config.json"]["pooling_mode"] = "max"
    add_files(model, files)
    (tmp_path / "texts.txt").write_text("a bad cab.\n")
    command = "embed", model, tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy"
    code, _, errors = lucid(*command)
    assert code == 2
    assert "modules.json cannot be followed (it pools by max, which lucid does not compute): choose" in errors
    (model / "modules.json").write_text("[3]")
    assert "does not list modules with path and type): choose the pooling" in lucid(*command)[2]
    assert not (tmp_path / "vectors.npy").exists()
    assert lucid(*command, "--pooling", "first")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "vectors.txt"), "vectors.txt: the name must end in .npy or .jsonl"),
        (("-o", "nowhere/vectors.npy"), "nowhere/vectors.npy could not be written: No such file"),
        (("-o", "vectors.npy", "--max-length", "33"), "--max-length is 33, but "),
        (("-o", "vectors.npy", "--pooling", "max"), "'max' is not one of 'mean', 'first'"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(arguments, message, lucid, run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("ba co\n")
    code, _, errors = lucid("embed", run_folder, "texts.txt", *arguments)
    assert (code, errors.count("\n")) == (2, 1)
    assert message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_vectors_that_are_not_finite_are_not_written(lucid, model, tmp_path):
    weights = load_file(model / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.bias"][:] = np.nan
    save_file(weights, model / "model.safetensors")
    (tmp_path / "texts.txt").write_text("a bad cab.\n")
    code, _, errors = lucid("embed", model, tmp_path / "texts.txt", "-o", tmp_path / "vectors.npy")
    assert code == 2
    assert "gives vectors that are not finite" in errors
    assert not (tmp_path / "vectors.npy").exists()


def test_pooling_without_sentence_transformers_is_refused(lucid, run_folder, tmp_path):
    code, _, errors = lucid("export", run_folder, tmp_path / "model", "--pooling", "mean")
    assert (code, "add --sentence-transformers" in errors) == (2, True)
