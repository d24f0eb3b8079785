"""`lucid extend`: new words are a better start than random rows, transformers can read them, and mistakes are said."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from lucid.data import load_tokenizer
from lucid.data.tokenizer import save_tokenizer
from lucid.errors import LaunchError
from lucid.models import BERTForPreTraining

TOKENS, SIZE = 40, 200  # the tokenizer of the run has 200 tokens, and its model eight more
NEW = ["--tokens", TOKENS, "--at-least", 3, "--processes", 1]
# A model that learns in seconds which syllables occur together.
SHORT_RUN = {
    "run_folder": "run",
    "model": {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "initializer_range": 0.05,
    },
    "data": {"path": "corpus", "sequence_length": 32},
    "optimizer": {"learning_rate": 5.0e-3, "warmup_steps": 10},
    "train": {"steps": 60, "global_batch": 16, "evaluation_samples": 8, "threads_per_rank": 1},
}
ROWS = "bert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def extended(run_folder, text_file, tmp_path_factory):
    """The model of the run with words of its text, whose small vocabulary splits most of them."""
    from lucid.cli import main

    folder = tmp_path_factory.mktemp("extended") / "model"
    with pytest.raises(SystemExit) as leaving:
        main([str(word) for word in ("extend", run_folder, text_file, "-o", folder, *NEW)])
    assert leaving.value.code == 0
    return folder


@pytest.fixture
def new_corpus(lucid, extended, text_file, tmp_path):
    """The text, prepared with the new tokenizer."""
    command = ["prepare", text_file, "-o", tmp_path / "corpus", "--tokenizer", extended, "--processes", 1]
    assert lucid(*command)[0] == 0
    return tmp_path / "corpus"


def topical_text(seed):
    """Return documents with the words of one topic each. A small vocabulary splits the words into syllables."""
    draw = random.Random(seed)
    syllables = ["ba", "co", "du", "fe", "gi", "ka", "lo", "mu", "ne", "pi", "ra", "so", "tu", "ve", "zi"]
    topics = [["".join(draw.choices(syllables, k=3)) for _ in range(8)] for _ in range(6)]
    sentences = [
        [" ".join(draw.choices(topic, k=draw.randint(4, 8))) + "." for _ in range(draw.randint(2, 6))]
        for topic in draw.choices(topics, k=300)
    ]
    return "\n\n".join(map(" ".join, sentences))


def test_new_rows_predict_held_out_text_better_than_random_ones(lucid, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(topical_text(seed=1))
    Path("run.yaml").write_text(yaml.safe_dump(SHORT_RUN))

    def held_out_loss(model):
        code, output, _ = lucid("evaluate", model, "--data", "new_corpus", "--sequence-length", 32)
        assert code == 0
        return float(re.search(r"MLM loss ([\d.]+)", output)[1])

    for command in (
        "prepare text.txt -o corpus --vocab-size 100 --processes 1",
        "train run.yaml",
        "extend run text.txt -o extended --tokens 30 --processes 1",
        "prepare text.txt -o new_corpus --tokenizer extended --processes 1",
    ):
        assert lucid(*command.split())[0] == 0
    model = BERTForPreTraining.from_pretrained("extended")
    model.with_vocabulary(100).with_vocabulary(130).save_pretrained("random")
    assert held_out_loss("extended") < held_out_loss("random") - 0.1


def test_what_is_printed_is_true(lucid, run_folder, text_file, new_corpus, corpus_folder, tmp_path):
    code, output, errors = lucid("extend", run_folder, text_file, "-o", tmp_path / "model", *NEW)
    assert (code, errors) == (0, "")
    assert f"{tmp_path / 'model'} has {SIZE + TOKENS} tokens" in output
    before, after = (float(number) for number in re.findall(r"([\d.]+) tokens a word", output))
    assert 1 < after < before
    tokens = [json.loads((folder / "manifest.json").read_text())["splits"] for folder in (corpus_folder, new_corpus)]
    sums = [sum(split["tokens"] for split in splits.values()) for splits in tokens]
    assert sums[1] / sums[0] == pytest.approx(after / before, rel=0.05)


def test_the_folder_is_one_of_transformers_with_the_mean_rows(run_folder, extended):
    config = json.loads((extended / "config.json").read_text())
    assert (config["vocab_size"], config["architectures"]) == (SIZE + TOKENS, ["BertForPreTraining"])
    weights = load_file(extended / "model.safetensors")
    old = load_file(max((run_folder / "checkpoints").iterdir()) / "model.safetensors")
    vocabulary = (extended / "vocab.txt").read_text().splitlines()
    before = load_tokenizer(max((run_folder / "checkpoints").iterdir()))
    theirs = Tokenizer.from_file(str(extended / "tokenizer.json"))
    assert len(vocabulary) == theirs.get_vocab_size() == SIZE + TOKENS
    for number, word in enumerate(vocabulary[SIZE:], start=SIZE):
        assert theirs.encode(word, add_special_tokens=False).ids == [number]
        pieces = before.encode(word, add_special_tokens=False).ids
        assert len(pieces) > 1
        for name in (ROWS, "cls.predictions.bias"):
            np.testing.assert_allclose(weights[name][number], old[name][pieces].mean(axis=0), rtol=1e-4, atol=1e-7)
    for name, array in old.items():
        rows = SIZE if name in (ROWS, "cls.predictions.bias") else None
        np.testing.assert_array_equal(weights[name][:rows], array[:rows])


def test_a_run_starts_with_the_new_model(lucid, run_folder, extended, new_corpus, tmp_path):
    run = [run_folder.with_name("run.yaml"), f"run_folder={tmp_path / 'run'}", f"data.path={new_corpus}"]
    start = [f"initial_model={extended}", "train.steps=1", "optimizer.learning_rate=1e-30"]
    assert lucid("train", *run, *start, f"model.vocab_size={SIZE + TOKENS}")[0] == 0
    assert lucid("predict", tmp_path / "run", "ba [MASK].")[0] == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("0*")
    weights = [load_file(folder / "model.safetensors")[ROWS] for folder in (extended, checkpoint)]
    np.testing.assert_array_equal(*weights)


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_words_depend_on_the_text_alone(lucid, run_folder, extended, text_file, tmp_path):
    corpus, tokenizer = tmp_path / "corpus", max((run_folder / "checkpoints").iterdir())
    assert lucid("prepare", text_file, "-o", corpus, "--tokenizer", tokenizer, "--processes", 1)[0] == 0
    documents = text_file.read_text().split("\n\n")
    folder = tmp_path / "text"
    folder.mkdir()
    for number, start in enumerate(range(0, len(documents), 10)):
        (folder / f"{number:03}.txt").write_text("\n\n".join(documents[start : start + 10]))
    for number, (source, processes) in enumerate([(corpus, 1), (folder, 2)]):
        model = tmp_path / f"model{number}"
        assert lucid("extend", run_folder, source, "-o", model, *NEW, "--processes", processes)[0] == 0
        assert files_of(model) == files_of(extended)


def test_unknown_words_get_random_rows_which_are_the_same_each_time(lucid, run_folder, text_file, tmp_path):
    (tmp_path / "rain.txt").write_text("\n\n".join(f"ba 雨 雨雪 {number}" for number in range(99)))
    for name in ("model", "again"):
        code, output, _ = lucid("extend", run_folder, text_file, tmp_path / "rain.txt", "-o", tmp_path / name, *NEW)
        assert code == 0
        assert "whose rows are newly initialised: 2\n" in output
        assert "雪 (unknown)" in output
    assert files_of(tmp_path / "model") == files_of(tmp_path / "again")
    tokenizer, rows = load_tokenizer(tmp_path / "model"), load_file(tmp_path / "model" / "model.safetensors")[ROWS]
    rain, snow = (rows[tokenizer.token_to_id(word)] for word in "雨雪")
    assert (rain != snow).any()


def test_words_that_a_corpus_holds_as_unknown_are_said_not_to_count(lucid, run_folder, text_file, tmp_path):
    (tmp_path / "rain.txt").write_text("\n\n".join(f"ba 雨 雨雪 {number}" for number in range(99)))
    tokenizer, corpus = max((run_folder / "checkpoints").iterdir()), tmp_path / "corpus"
    inputs = text_file, tmp_path / "rain.txt"
    assert lucid("prepare", *inputs, "-o", corpus, "--tokenizer", tokenizer, "--processes", 1)[0] == 0
    code, output, _ = lucid("extend", run_folder, corpus, "-o", tmp_path / "model", *NEW)
    assert code == 0
    assert f"{corpus} has [UNK] in place of 396 words, which are not counted above: to add them, name" in output


def test_a_model_without_heads_stays_without_and_a_padded_vocabulary_is_cut(lucid, extended, text_file, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(extended, model)
    weights = {name: array for name, array in load_file(model / "model.safetensors").items() if "cls" not in name}
    save_file(
        weights | {ROWS: np.concatenate([weights[ROWS], np.ones((16, 16), np.float32)])}, model / "model.safetensors"
    )
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": SIZE + TOKENS + 16}))
    code, output, _ = lucid("extend", model, text_file, "-o", tmp_path / "new", *NEW)
    assert code == 0
    assert "it has no MLM head and NSP head, because" in output
    new = load_file(tmp_path / "new" / "model.safetensors")
    assert new.keys() == weights.keys()
    assert len(new[ROWS]) == SIZE + 2 * TOKENS
    np.testing.assert_array_equal(new[ROWS][: SIZE + TOKENS], weights[ROWS])


@pytest.mark.parametrize(
    ("name", "mention"), [("bad.jsonl", "bad.jsonl:1: not JSON"), ("bad.pdf", "bad.pdf: another kind of file")]
)
def test_text_that_cannot_be_used_is_mentioned(name, mention, lucid, run_folder, text_file, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    shutil.copy(text_file, folder)
    (folder / name).write_text("no json\n")
    code, output, _ = lucid("extend", run_folder, folder, "-o", tmp_path / "new", *NEW)
    assert code == 0
    assert f"some of the text could not be used, first {mention}" in output


def test_several_ranks_are_refused_in_one_sentence(lucid, run_folder, text_file, monkeypatch, tmp_path):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    code, output, errors = lucid("extend", run_folder, text_file, "-o", tmp_path / "new", *NEW)
    assert (code, output, errors.count("\n")) == (LaunchError.exit_code, "", 1)
    assert "(PMI) started 2 processes, but lucid extend starts its own: run it once, with --processes 2, " in errors
    assert not (tmp_path / "new").exists()


@pytest.fixture
def broken(extended, corpus_folder, text_file, tmp_path):
    """A folder with a model, a text and corpora, in which something is wrong with each other name."""
    shutil.copytree(extended, tmp_path / "model")
    shutil.copytree(extended, tmp_path / "no_tokenizer")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "no_tokenizer" / name).unlink()
    shutil.copytree(extended, tmp_path / "gpt")
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    shutil.copytree(extended, tmp_path / "unigram")
    (tmp_path / "unigram" / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    shutil.copytree(extended, tmp_path / "added")
    tokenizer = load_tokenizer(tmp_path / "added")
    tokenizer.add_tokens(["<E1>"])
    save_tokenizer(tokenizer, tmp_path / "added")
    (tmp_path / "corpus").symlink_to(corpus_folder)
    (tmp_path / "text.txt").symlink_to(text_file)
    (tmp_path / "one.txt").write_text("One document.")
    (tmp_path / "two.txt").write_text("One document.\n\nAnother one.")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("model", "text", "options", "message"),
    [
        ("model", "text.txt", ["--tokens", "0"], "'--tokens': Input should be greater"),
        ("model", "text.txt", ["--at-least", "0"], "'--at-least': Input should be greater"),
        ("model", "text.txt", ["--tokens", "999999"], "999,999 new tokens were asked for, but the text has only "),
        ("model", "text.txt", ["-o", "full"], "full exists and is not an empty folder: choose another"),
        ("model", "nowhere", [], "input 'nowhere' does not exist"),
        ("model", "one.txt", [], "the input holds 1 document"),
        ("model", "two.txt", [], "too few to hold one out: add text\n"),
        ("model", "corpus", [], "corpus holds the tokens of another tokenizer than the model's: name the text"),
        ("model", "corpus", ["--text-field", "body"], "--text-field, --format and --whole-files say how text is read"),
        ("model", "corpus", ["--format", "csv"], "but each input is a prepared corpus: leave them out"),
        ("model", "text.txt", ["--best"], "model is not the folder of a run, among whose checkpoints --best chooses"),
        ("nowhere", "text.txt", [], "nowhere is neither a run's folder nor a model's"),
        ("no_tokenizer", "text.txt", [], "no_tokenizer holds no tokenizer"),
        ("gpt", "text.txt", [], "model_type is 'gpt2'"),
        ("unigram", "text.txt", [], "its model is 'Unigram'"),
        ("added", "text.txt", [], "knows 240 tokens, but the tokenizer there has 241"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(lucid, broken, monkeypatch, model, text, options, message):
    monkeypatch.chdir(broken)
    before = sorted(broken.iterdir())
    code, output, errors = lucid("extend", model, text, "-o", "new", *options)
    assert (code, output) == (2, "")
    assert errors.startswith("lucid: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert sorted(broken.iterdir()) == before
