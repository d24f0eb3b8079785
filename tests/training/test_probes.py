"""Linear probes: they find what can be found, are the same on any number of ranks, and change nothing in training."""

import gzip
import json
import shutil

import numpy as np
import pytest

from lucid.distributed import connect
from lucid.errors import ConfigError, DataError
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.store import find_model
from lucid.training.config import load
from lucid.training.corpora import open_corpora
from lucid.training.logistic_regression import correct_in_fold, fit
from lucid.training.probes import MOST_TEXTS, open_probes

EXACT = (
    "train.reduction=exact",
    "train.global_batch=16",
    "train.micro_batch=1",
    "train.steps=4",
    "optimizer.warmup_steps=0",
)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A file whose labels follow from the first syllable of the texts."""
    path = tmp_path_factory.mktemp("labels") / "syllables.tsv"
    rows = [f"{syllable} ne pi {'ra ' * (number % 7)}\t{syllable}" for number in range(30) for syllable in ("ba", "zi")]
    path.write_text("\n".join(rows))
    return path


def weights(run_folder):
    return (find_model(run_folder) / "model.safetensors").read_bytes()


def evaluations(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key.startswith("probe/")} for line in lines if "loss" not in line
    ]


def test_a_probe_changes_no_bit_of_a_run_and_does_not_depend_on_ranks(undisturbed, labels):
    settings = *EXACT, "train.evaluate_every=2"
    without = undisturbed(1, *settings)
    results = []
    for ranks in (1, 2):
        folder = undisturbed(ranks, *settings, f"train.probe={labels}")
        assert weights(folder) == weights(without)
        results.append(evaluations(folder))
    assert results[0] == results[1]
    assert evaluations(without) == [{}, {}]
    # Even random weights let word embeddings through.
    assert [entry["probe/syllables accuracy"] > 0.9 for entry in results[0]] == [True, True]


def probes_of(run_file, *paths):
    config = load(run_file, [f"train.probe=[{','.join(map(str, paths))}]"])
    return open_probes(config, open_corpora(config), connect("single"))


def test_labels_that_say_nothing_about_the_text_cannot_be_predicted(run_file, tmp_path):
    (tmp_path / "noise.tsv").write_text("".join(f"{'ba ' * (n % 9)}co\t{n * 7919 % 1009 % 2}\n" for n in range(400)))
    (probe,), _ = probes_of(run_file, tmp_path / "noise.tsv")
    result = probe.result(BERTForPreTraining(load(run_file).model), connect("single"))
    assert result.texts == 400
    assert result.accuracy < 0.6


def test_texts_are_drawn_from_all_over_a_long_file_whatever_the_seed(run_file, tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("text,label\n" + "".join(f"ba {'co ' * (n % 5)},{n // 2000}\n" for n in range(6000)))
    chosen = []
    for seed in (0, 1):
        config = load(run_file, [f"train.probe={path}", f"train.seed={seed}"])
        (probe,), messages = open_probes(config, open_corpora(config), connect("single"))
        assert messages == [f"train.probe: {path} has 6,000 texts, of which {MOST_TEXTS:,} are taken"]
        assert len(probe.labels) == MOST_TEXTS
        assert min(np.bincount(probe.labels, minlength=3)) > MOST_TEXTS / 4
        chosen.append([text for batch in probe.batches for text in batch.texts])
    assert chosen[0] == chosen[1]


def test_pairs_are_read_as_pairs(run_file, tmp_path):
    rows = [f"{a} ne\t{b} ne\t{a == b}" for _ in range(5) for a in ("ba", "zi") for b in ("ba", "zi")]
    (tmp_path / "pairs.tsv").write_text("\n".join(rows))
    (probe,), _ = probes_of(run_file, tmp_path / "pairs.tsv")
    rows = probe.batches[0].rows
    assert sorted(set(rows.token_type_ids.tolist())) == [0, 1]
    assert rows.sequences.count == 20


def test_hidden_states_that_are_not_finite_give_no_accuracy(run_file, labels):
    (probe,), _ = probes_of(run_file, labels)
    model = BERTForPreTraining(load(run_file).model)
    model.bert.embeddings.LayerNorm.bias.data[:] = np.nan
    result = probe.result(model, connect("single"))
    assert np.isnan(result.accuracy)
    assert result.most_frequent == 0.5


MANY_LABELS = "".join(f"ba\t{row % 51}\n" for row in range(102))
REFUSED = [
    ("a.tsv", "ba\tx\n" * 20, "all rows of {path} have the label 'x'"),
    ("a.tsv", "ba\tx\nco\ty\n", "{path} has 2 texts, too few for 5 folds"),
    ("a.tsv", MANY_LABELS, "{path} has 51 labels, and a probe takes 50 at most"),
    ("a.txt", "ba\n", "{path} has the wrong kind"),
    ("a.csv", 'text,label\n"ba,x\n', "{path}:2: a quote never closes"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_a_file_that_cannot_be_used_is_refused(name, content, message, run_file, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError) as refused:
        probes_of(run_file, path)
    assert message.format(path=path) in str(refused.value)


def test_all_ranks_refuse_a_file_before_a_run_begins(on_ranks, run_file, tmp_path):
    finished = on_ranks(2, "train", run_file, f"train.probe={tmp_path / 'none.tsv'}")
    assert finished.returncode == 2
    assert finished.stdout == f"lucid: {tmp_path}/none.tsv cannot be read: No such file or directory\n"
    assert not (tmp_path / "run").exists()


def test_a_compressed_file_has_the_name_of_what_it_holds(run_file, labels, tmp_path):
    packed = tmp_path / "packed" / f"{labels.name}.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(labels.read_bytes()))
    (probe,), _ = probes_of(run_file, packed)
    (plain,), _ = probes_of(run_file, labels)
    assert (probe.name, probe.digest) == (plain.name, plain.digest) == ("syllables", plain.digest)
    shutil.copy(labels, packed.parent)
    with pytest.raises(ConfigError, match="which differ in their ending at most"):
        probes_of(run_file, packed, packed.parent / labels.name)


CHANGED = "train.probe: the texts or labels of syllables are not those of before"


def test_a_resumed_run_may_have_another_probe_and_says_if_its_file_has_changed(on_ranks, run_file, labels, tmp_path):
    without_warmup = "optimizer.warmup_steps=0"
    assert on_ranks(1, "train", run_file, without_warmup, "train.steps=2", "train.probe=[]").returncode == 0
    finished = on_ranks(1, "train", run_file, without_warmup, "train.steps=4", f"train.probe={labels}")
    assert finished.returncode == 0
    assert "resumes from step 2" in finished.stdout
    assert "probe (syllables): accuracy " in finished.stdout
    assert [bool(entry) for entry in evaluations(tmp_path / "run")] == [False, True]
    missing = tmp_path / "none.tsv"
    finished = on_ranks(2, "train", run_file, without_warmup, "train.steps=6", f"train.probe=[{labels},{missing}]")
    assert finished.returncode == 0
    assert f"train.probe: {missing} is missing: the run goes on without this probe" in finished.stdout
    assert finished.stdout.count("probe (syllables): accuracy ") == 1
    assert CHANGED not in finished.stdout
    header, *rows = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join([header, *rows[1:]]))
    finished = on_ranks(2, "train", run_file, without_warmup, "train.steps=8", f"train.probe={labels}")
    assert finished.stdout.count(CHANGED) == 1
    finished = on_ranks(1, "train", run_file, without_warmup, "train.steps=10", f"train.probe={labels}")
    assert finished.returncode == 0
    assert CHANGED not in finished.stdout


@pytest.fixture
def examples():
    draw = np.random.default_rng(3)
    features = draw.normal(size=(60, 4))
    features[:, 3] *= 5
    return features, np.argmax(features[:, :3] + 0.8 * draw.normal(size=(60, 3)), axis=1)


def test_the_regression_is_that_of_scikit_learn(examples):
    """The weights that LogisticRegression(C=1) of scikit-learn 1.9 finds for the same examples."""
    features, labels = examples
    weights, bias = fit(features, labels, 3)
    expected = [
        [1.190099, -0.716829, -0.951726, 0.092993],
        [-0.748822, 1.077966, -0.387308, 0.021728],
        [-0.441277, -0.361137, 1.339034, -0.114721],
    ]
    np.testing.assert_allclose(weights.T, expected, atol=2e-3)
    scores = features[:1] @ weights + bias
    probabilities = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(probabilities, [[0.955075, 0.000245, 0.044679]], atol=1e-3)


def test_a_fold_is_predicted_from_the_others_alone(examples):
    features, labels = examples
    folds = np.arange(60) % 5 == 0
    correct = correct_in_fold(features.astype(np.float32), labels, 3, folds)
    assert 4 < correct <= 12
    changed = np.where(folds, (labels + 1) % 3, labels)
    wrong = correct_in_fold(features.astype(np.float32), changed, 3, folds)
    assert wrong <= 12 - correct
