"""`lucid finetune`: a tiny model learns a task; the same on any number of ranks; what it prints, writes and refuses."""

import json
import re
import shutil
import weakref
from contextlib import chdir

import numpy as np
import pytest
from rank_pool.commands import command
from tasks import label_of, sentences, tiny_config, tiny_tokenizer

from lucid.cli import main
from lucid.cli.finetune import _progress
from lucid.data.tokenizer import load_tokenizer, save_tokenizer
from lucid.distributed import DistributedDataParallel, announced
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ConfigError
from lucid.finetuning import comparison
from lucid.finetuning.encoding import CUT_OFF, encode
from lucid.finetuning.examples import read_task
from lucid.finetuning.metrics import metrics_of
from lucid.finetuning.tuning import predict
from lucid.models import BERTForPreTraining, BERTForSequenceClassification, BERTForTokenClassification
from lucid.random import Coordinates, at, manual_seed

# Learns both tasks.
LONG = "--learning-rate", 0.02, "--epochs", 12, "--batch-size", 12, "--seeds", 1
SHORT = "--learning-rate", 0.02, "--epochs", 1, "--batch-size", 12, "--seeds", 2
RATES = "--learning-rate", 0.1, "--learning-rate", 0.2


@pytest.fixture
def lucid(capsys):
    """A function that runs one command and returns (exit code, standard output, standard error)."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        return (leaving.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def finetune(lucid, task_folder):
    """A function that fine-tunes models on the task of a kind, as `lucid` runs it."""

    def run(*arguments, kind="tsv", models=("model",)):
        files = "--train", task_folder / f"train.{kind}", "--test", task_folder / f"test.{kind}"
        return lucid("finetune", *(task_folder / name for name in models), *files, *arguments)

    return run


@pytest.fixture(scope="module")
def learned(task_folder, tmp_path_factory):
    """The folders of classifiers that have learnt each kind of task."""
    folder = tmp_path_factory.mktemp("learned")
    for kind in ("tsv", "conll"):
        files = "--train", task_folder / f"train.{kind}", "--test", task_folder / f"test.{kind}"
        with pytest.raises(SystemExit) as leaving:
            main([*map(str, ["finetune", task_folder / "model", *files, *LONG, "--output", folder / kind])])
        assert leaving.value.code == 0
    return folder


@pytest.mark.parametrize(
    ("kind", "classifier", "metric", "least"),
    [
        ("tsv", BERTForSequenceClassification, "accuracy", 0.95),
        ("conll", BERTForTokenClassification, "entity F1", 0.75),
    ],
)
def test_a_model_learns_a_task(kind, classifier, metric, least, learned, task_folder):
    task = read_task(task_folder / f"train.{kind}", task_folder / f"test.{kind}")
    model = classifier.from_pretrained(learned / kind)
    encoded = encode(task.test, task.labels, load_tokenizer(learned / kind), 16, 2)
    predicted = predict(model, encoded, SingleCommunicator(), task.commonest)
    found = metrics_of(task.test, task.labels, [predicted])[0]
    assert found.name == metric
    assert found.of_seeds()[0] > least


@pytest.mark.parametrize("kind", ["tsv", "conll"])
def test_results_do_not_depend_on_the_number_of_ranks(kind, on_ranks, task_folder, tmp_path):
    files = "--train", task_folder / f"train.{kind}", "--test", task_folder / f"test.{kind}"
    # Adam amplifies rounding: after two steps most weights still show whether the gradients were the same.
    options = "--learning-rate", 0.001, "--epochs", 1, "--batch-size", 48, "--seeds", 1
    found = []
    for ranks in (1, 2, 3):
        output = tmp_path / str(ranks)
        finished = on_ranks(ranks, "finetune", task_folder / "model", *files, *options, "--json", "--output", output)
        assert finished.returncode == 0, finished.stdout
        result = json.loads(re.search(r"^{$.*^}$", finished.stdout, re.MULTILINE | re.DOTALL)[0])
        found.append((result["models"], output))
    results, folders = zip(*found, strict=True)
    assert results[1] == results[0]
    assert results[2] == results[0]
    classifier = BERTForTokenClassification if kind == "conll" else BERTForSequenceClassification
    first, *others = (
        np.concatenate([array.ravel() for array in classifier.from_pretrained(folder).state_dict().values()])
        for folder in folders
    )
    for weights in others:
        assert np.mean(np.abs(weights - first) < 1e-5) > 0.97


def test_a_model_is_gone_before_the_next_is_made(finetune, monkeypatch):
    made, alive = [], []

    def flattened(model, communicator):
        alive.append(sum(buffer() is not None for buffer in made))
        ddp = DistributedDataParallel(model, communicator)
        made.append(weakref.ref(ddp.flat.values))
        return ddp

    monkeypatch.setattr(comparison, "DistributedDataParallel", flattened)
    code, _, errors = finetune(*SHORT, "--from-scratch", models=("model", "other"))
    assert (code, errors) == (0, "")
    assert alive == [0, 0, 0]


def test_dropout_of_an_example_does_not_depend_on_the_others_in_its_batch(task_folder):
    task = read_task(task_folder / "train.conll", task_folder / "test.conll")
    data = encode(task.train, task.labels, tiny_tokenizer(), 16, 2)
    model = BERTForTokenClassification(tiny_config(), task.labels).train()
    shortest, longest = int(data.lengths.argmin()), int(data.lengths.argmax())
    assert data.lengths[shortest] < data.lengths[longest]

    def loss_of(*examples):
        batch = data.batch(np.array(examples))
        with at(Coordinates.of(0, 0, np.array(examples))):
            return model.losses(batch.rows, batch.labels).loss.item()

    assert loss_of(shortest, longest) == pytest.approx(loss_of(shortest) + loss_of(longest), rel=1e-6)


def test_models_are_compared_with_the_first(finetune, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, output, errors = finetune(*SHORT, "--from-scratch", models=("model", "other"))
    assert (code, errors) == (0, "")
    model = r"\S*/model"
    assert re.search(rf"^│ {model} +│ 0.02 +│ \d+\.\d% \(\d+\.\d% to \d+\.\d%\) +│ \d", output, re.MULTILINE)
    for name in (r"\S*/other", rf"{model} from scratch"):
        words = rf"no difference between {name} and {model}|{name} is better than {model}|{model} is better than {name}"
        assert re.search(rf"^({words}) .*% interval .*\)$", output, re.MULTILINE), output
    assert output.endswith("96 texts to train on, 40 to test on, 2 labels\n")
    assert output.count("seed 1 of 2: 8 steps") == 3


def test_differences_in_json_have_the_sign_of_the_means(finetune):
    first, second = json.loads(finetune(*SHORT[2:], "--json", "--from-scratch")[1])["models"]
    for metric in ("accuracy", "macro-F1"):
        found = second[metric]["difference"]
        assert found["mean"] == pytest.approx(second[metric]["mean"] - first[metric]["mean"])
        assert found["interval"][0] <= found["mean"] <= found["interval"][1]
        assert "difference" not in first[metric]


def test_each_model_takes_the_best_of_several_learning_rates(finetune):
    rates = "--learning-rate", 1e-6, "--learning-rate", 0.02
    output = finetune(*rates, "--epochs", 4, "--batch-size", 12, "--seeds", 1)[1]
    assert re.search(r"│ 0\.02 ", output)
    # A tenth of the training examples measures the rates.
    assert re.findall(r", (.*): (\d+) steps", output) == [
        ("learning rate 1e-06", "29"),
        ("learning rate 0.02", "29"),
        ("seed 1 of 1", "32"),
    ]


def test_rates_are_chosen_on_a_file_for_that_if_there_is_one(finetune):
    # Its labels are swapped, so the rate that learns nothing does better on it.
    swapped = {"number": "colour", "colour": "number"}
    with open("swapped.tsv", "w") as file:
        file.write("text\tlabel\n")
        file.writelines(f"{' '.join(words)}\t{swapped[label_of(words)]}\n" for words in sentences(40))
        file.write("something else\tshape\n")
    rates = "--learning-rate", 1e-6, "--learning-rate", 0.02
    options = "--epochs", 12, "--batch-size", 12, "--seeds", 1
    output = finetune(*rates, *options, "--validation", "swapped.tsv")[1]
    assert re.search(r"│ 1e-06 ", output)
    # Every training takes all training examples.
    assert re.findall(r", .*: (\d+) steps", output) == 3 * ["96"]
    assert " to train on, 41 to choose a learning rate on, " in output
    assert re.search(r"swapped\.tsv has labels that \S+ lacks, such as 'shape' \(1 in all\)", output)


def test_the_default_learning_rate_falls_with_the_width(finetune):
    output = finetune("--seeds", 1, "--epochs", 1, "--json")[1]
    assert json.loads(output)["models"][0]["learning_rate"] == pytest.approx(5e-5 * 768 / 16)


def test_the_same_command_gives_the_same_results(finetune):
    assert finetune(*SHORT, "--json")[1] == finetune(*SHORT, "--json")[1]


def test_the_output_is_the_classifier_that_was_tested(finetune, task_folder, tmp_path):
    folder = tmp_path / "out"
    code, output, _ = finetune(*SHORT, "--json", "--output", folder)
    assert code == 0
    (remark,) = json.loads(output)["remarks"]
    assert remark.endswith("fine-tuned with the first seed: a BertForSequenceClassification")
    model, tokenizer = BERTForSequenceClassification.from_pretrained(folder), load_tokenizer(folder)
    assert model.labels == ("colour", "number")
    rows = [line.split("\t") for line in (task_folder / "test.tsv").read_text().splitlines()[1:]]
    right = 0
    for text, label in rows:
        ids = np.array([tokenizer.encode(text).ids])
        right += model.labels[int(model.predict_labels(ids).numpy()[0])] == label
    assert right / len(rows) == pytest.approx(json.loads(output)["models"][0]["accuracy"]["seeds"][0])
    assert "is not an empty folder" in finetune("--output", folder)[2]


def test_predict_says_the_labels_of_a_text_and_of_words(lucid, learned):
    code, output, _ = lucid("predict", learned / "tsv", "two red blue")
    assert code == 0
    assert re.fullmatch(r"number \d+\.\d%, colour \d+\.\d%\n", output)
    assert re.fullmatch(r"colour \d+\.\d%\n", lucid("predict", learned / "tsv", "red two", "--top", 1)[1])
    lines = lucid("predict", learned / "conll", "two three red")[1].splitlines()
    assert [line.rpartition(" ")[0] for line in lines] == ["two\tB-N", "three\tI-N", "red\tO"]


def test_predict_refuses_what_a_classifier_cannot_take(lucid, learned):
    for arguments, message in (
        (("one", "--next", "two"), "labels words, not pairs: leave out --next"),
        (("one " * 20,), "the text has 22 tokens, the model takes 16: shorten it"),
    ):
        code, _, errors = lucid("predict", learned / "conll", *arguments)
        assert (code, errors.count("\n")) == (2, 1)
        assert message in errors


def test_a_word_that_is_cut_off_has_the_commonest_label(finetune, task_folder):
    output = finetune(*SHORT, "--json", "--max-length", 8, kind="conll")[1]
    (remark,) = json.loads(output)["remarks"]
    assert re.search(
        r"model: \d+ words of \S*test.conll are beyond --max-length .* for 'O', the commonest label", remark
    )


def test_a_word_is_labelled_at_its_first_token(tmp_path):
    (tmp_path / "a.conll").write_text("ones A\n\u200b O\none-two B\n")
    task = read_task(tmp_path / "a.conll", tmp_path / "a.conll")
    encoded = encode(task.train, task.labels, tiny_tokenizer(), 16, 2)
    assert encoded.places[0].tolist() == [1, CUT_OFF, 3]
    batch = encoded.batch(np.array([0, 0]))
    width = len(encoded.ids[0])
    assert batch.labels.tolist() == [-100, 0, -100, 1, *[-100] * (width - 4)] * 2
    assert batch.score_rows.tolist() == [1, 3, width + 1, width + 3]
    assert batch.numbers.tolist() == [0, 2, 0, 2]


def test_pairs_are_told_apart_by_their_token_types(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tpair\tlabel\none\ttwo three\tx\ntwo\tone\ty\n")
    task = read_task(tmp_path / "a.tsv", tmp_path / "a.tsv")
    encoded = encode(task.train, task.labels, tiny_tokenizer(), 16, 2)
    assert [types.tolist() for types in encoded.types] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]


def test_the_vocabulary_of_the_output_is_the_tokenizers(finetune, task_folder, tmp_path):
    manual_seed(0)
    BERTForPreTraining(tiny_config(vocab_size=64)).save_pretrained(tmp_path / "padded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(task_folder / "model" / name, tmp_path / "padded" / name)
    code, *_ = finetune("--seeds", 1, "--epochs", 1, "--output", tmp_path / "out", models=(tmp_path / "padded",))
    assert code == 0
    found = BERTForSequenceClassification.from_pretrained(tmp_path / "out")
    assert found.config.vocab_size == tiny_tokenizer().get_vocab_size()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--learning-rate", 2), "--learning-rate takes numbers between 0 and 1"),
        (("--train", "gone.tsv"), "gone.tsv cannot be read: No such file or directory"),
        (
            ("--train", "words.conll"),
            "words.conll has labels for each word, .*test.tsv for whole texts: take files",
        ),
        (("--train", "one.tsv"), "all labels of one.tsv are 'x': there is nothing to tell apart"),
        (("--train", "few.tsv", *RATES), "2 training examples are too few to"),
        (("--train", "pairs.tsv"), "only pairs.tsv has pairs of texts: take files of one kind"),
        (("--validation", "gone.tsv", *RATES), "gone.tsv cannot be read: No such file or directory"),
        (("--validation", "pairs.tsv", *RATES), "only pairs.tsv has pairs of texts: take files of one kind"),
        (("--validation", "pairs.tsv", *RATES[2:]), "--validation serves to choose one of several rates: repeat"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(arguments, message, finetune, task_folder):
    shutil.copy(task_folder / "train.conll", "words.conll")
    rows = {"one": ["text\tlabel", "a\tx", "b\tx"], "few": ["text\tlabel", "a\tx", "b\ty"]}
    rows["pairs"] = ["text\tpair\tlabel", "a\tb\tx"]
    for name, lines in rows.items():
        with open(f"{name}.tsv", "w") as file:
            file.write("\n".join(lines))
    code, output, errors = finetune(*arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert re.search(message, errors), errors


def test_a_model_with_weights_that_are_not_finite_is_refused(finetune, task_folder, tmp_path):
    model = BERTForPreTraining.from_pretrained(task_folder / "model")
    model.bert.embeddings.word_embeddings.weight.data[3] = np.nan
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tiny_tokenizer(), tmp_path / "model")
    code, output, errors = finetune(*SHORT, models=(tmp_path / "model",))
    assert (code, output) == (2, "")
    assert errors == f"lucid: {tmp_path / 'model'} has weights that are not finite: take an older checkpoint\n"


def test_pairs_for_a_model_that_takes_fewer_tokens_than_a_pair_has_special_ones_are_refused(tmp_path):
    (tmp_path / "pairs.tsv").write_text("text\tpair\tlabel\none\ttwo\ta\none\tred\tb\n")
    task = read_task(tmp_path / "pairs.tsv", tmp_path / "pairs.tsv")
    with pytest.raises(ConfigError, match="pairs cannot be cut to 2 tokens"):
        encode(task.train, task.labels, tiny_tokenizer(), 2, 2)


def test_more_ranks_than_examples_in_a_step_are_refused(on_ranks, task_folder):
    files = "--train", task_folder / "train.tsv", "--test", task_folder / "test.tsv"
    finished = on_ranks(2, "finetune", task_folder / "model", *files, "--batch-size", 1)
    assert finished.returncode == 2
    assert "there are 2 ranks, but a step has 1 example: start fewer" in finished.stdout


def test_labels_that_training_lacks_are_reported(finetune, task_folder):
    with open("test.tsv", "w") as file:
        file.write((task_folder / "test.tsv").read_text() + "one\tgrand\n")
    code, output, _ = finetune("--seeds", 1, "--epochs", 1, "--test", "test.tsv")
    assert code == 0
    assert re.search(r"test.tsv has labels that \S+ lacks, such as 'grand' \(1 in all\): no model", output)


def test_a_narrow_terminal_leaves_out_no_cell_and_few_test_examples_are_reported(finetune, monkeypatch, task_folder):
    monkeypatch.setenv("COLUMNS", "30")
    with open("test.tsv", "w") as file:
        file.write("text\tlabel\none\tnumber\n")
    code, output, _ = finetune("--seeds", 1, "--epochs", 1, "--test", "test.tsv", "--from-scratch")
    assert code == 0
    assert "accuracy" in output
    assert "macro-F1" in output
    assert "\u2026" not in output
    assert "test.tsv has too few examples for the intervals: do not rely on them below 20" in output


def run_with_own_files(arguments, folder):
    with chdir(folder / str(announced().rank)):
        return command([str(argument) for argument in arguments])


@pytest.mark.parametrize("altered", ["train.tsv", "model"])
def test_hosts_with_different_files_are_refused(altered, rank_pool, task_folder, tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        for name in ("model", "train.tsv", "test.tsv"):
            source = {"train.tsv": "test.tsv", "model": "other"}[name] if rank and name == altered else name
            (tmp_path / str(rank) / name).symlink_to(task_folder / source)
    runs = [["finetune", "model", "--train", "train.tsv", "--test", "test.tsv", *SHORT]]
    if altered == "model":
        runs.append(["embed", "model", "test.tsv", "-o", "vectors.npy"])
    for arguments in runs:
        results = rank_pool.run(2, run_with_own_files, arguments, tmp_path)
        assert [result.value for result in results] == [2, 2]
        output = "".join(result.output for result in results)
        assert re.search(rf"lucid: rank 1 on \S+ reads something else than the first rank from {altered}", output)


def test_an_output_that_cannot_be_written_loses_no_results(finetune, monkeypatch, tmp_path):
    def fail(*_):
        raise ConfigError("no space")

    monkeypatch.setattr("lucid.cli.finetune._write", fail)
    code, output, errors = finetune(*SHORT, "--json", "--output", tmp_path / "folder")
    assert (code, errors) == (2, "lucid: no space\n")
    assert len(json.loads(output)["models"]) == 1


def test_the_live_line_shows_a_path_with_brackets_as_it_is(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with _progress(is_first=True, as_json=False) as begin:
        begin("runs/[/x]", "seed 1 of 1", 1)()
    assert "runs/[/x], seed 1 of 1" in capsys.readouterr().err
