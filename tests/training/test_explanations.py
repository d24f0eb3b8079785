"""What curves say: recorded runs with and without planted faults, and logs that are damaged, old or made by hand."""

import json
import math

import numpy as np
import pytest
from isolation import REPOSITORY

from lucid.data import Corpus
from lucid.preparation import prepare
from lucid.training.config import from_dict
from lucid.training.corpora import open_mixture
from lucid.training.counts.kept import KeptCounts
from lucid.training.explanations.curve import Curve
from lucid.training.explanations.explainer import Explainer, explain, findings_in
from lucid.training.explanations.facts import CorpusFacts, Facts
from lucid.training.explanations.facts import facts_of as facts_from
from lucid.training.explanations.steps import spikes
from lucid.training.log.metrics import METRICS_FILE

GOLDEN = REPOSITORY / "tests" / "golden" / "curves.jsonl"
CURVES = {name: curve for line in GOLDEN.read_text().splitlines() for name, curve in json.loads(line).items()}
HEALTHY = [name for name, curve in CURVES.items() if not curve["fault"]]

# What each fault is found as, and words of its advice.
EXPECTED = {
    "rate": ("stuck", "The learning rate is too high"),
    "stuck": ("stuck", "Most likely the learning rate is too high"),
    "warm-up": ("stuck", "The warm-up of 0 steps is short: raise optimizer.warmup_steps to 30"),
    "labels": ("stuck", "the labels cannot be learnt from the text"),
    "slow": ("slow", "Try optimizer.learning_rate ten times as large"),
    "spikes": ("spikes", "`lucid explain RUN --rows 3`"),
    "overfitting": ("overfitting", "Train on more text"),
}


def entries_of(curve):
    """The entries of a recorded log, evaluations after the lines of training of their steps."""
    entries = []
    for kind in ("training", "held_out"):
        names, columns = zip(*curve[kind].items(), strict=True)
        entries += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    return sorted(entries, key=lambda entry: entry["step"])


def facts_of(curve):
    settings = curve["settings"]
    return Facts(settings["train"]["steps"], settings["optimizer"]["warmup_steps"], settings["model"]["vocab_size"])


def said(entries, facts):
    """The names of all findings that a run says while it trains, with the step of each."""
    explainer = Explainer(facts, [])
    return {finding.name: entry["step"] for entry in entries for finding in explainer.add(entry)}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm_at_any_step(name):
    assert said(entries_of(CURVES[name]), facts_of(CURVES[name])) == {}


@pytest.mark.parametrize("name", [name for name in CURVES if CURVES[name]["fault"] in EXPECTED])
def test_a_planted_fault_is_found(name):
    expected, advice = EXPECTED[CURVES[name]["fault"]]
    [finding] = explain(entries_of(CURVES[name]), facts_of(CURVES[name]))
    assert finding.name == expected
    assert finding.is_alarm
    assert advice in finding.advice


def test_a_fault_is_said_once_and_as_soon_as_the_run_is_half_over():
    curve = CURVES["py, rate x 10"]
    assert said(entries_of(curve), facts_of(curve)) == {"stuck": 300}


def test_a_run_that_learns_late_is_stuck_until_then():
    curve = CURVES["de, rate x 2"]
    assert said(entries_of(curve), facts_of(curve)) == {"stuck": 300}
    assert explain(entries_of(curve), facts_of(curve)) == []


def test_a_rise_is_found_while_it_lasts():
    curve = CURVES["py, rate x 30 after a long warm-up"]
    assert 300 < said(entries_of(curve), facts_of(curve))["rising"] <= 450


def test_the_steps_of_a_spike_are_named():
    curve = CURVES["py, bad batches"]
    assert [(spike.first, spike.last) for spike in spikes(Curve(entries_of(curve)))] == [(246, 250), (376, 380)]


def test_a_resumed_run_does_not_say_again_what_it_has_said():
    curve = CURVES["py, rate x 10"]
    entries = entries_of(curve)
    before = [entry for entry in entries if entry["step"] <= 400]
    explainer = Explainer(facts_of(curve), before)
    assert [finding for entry in entries[len(before) :] for finding in explainer.add(entry)] == []


def test_without_settings_the_log_alone_is_explained():
    findings = explain(entries_of(CURVES["py, rate x 10"]), Facts())
    assert [finding.name for finding in findings] == ["stuck"]


def test_a_loss_that_rises_with_the_masking_rate_is_no_alarm():
    losses = [5.0 - step / 40 if step < 40 else 4.0 + step / 100 for step in range(100)]
    entries = [training(step, loss) for step, loss in enumerate(losses, 1)]
    for rate, expected in ((0.15, ["rising"]), ([0.3, 0.15], ["rising"]), ([0.15, 0.3], [])):
        data = {"path": "corpus", "sequence_length": 32, "mlm_probability": rate}
        train = {"steps": 100, "global_batch": 4}
        config = from_dict({"run_folder": "run", "data": data, "train": train, "optimizer": {"warmup_steps": 5}})
        assert names(entries, Facts.of(config)) == expected


def test_an_initial_model_that_does_not_fit_is_named_as_the_cause():
    curve = CURVES["py, rate x 2"]
    facts = Facts(500, 40, 1024, is_new=False)
    [finding] = explain(entries_of(curve), facts)
    assert "The initial model and the tokenizer may not belong together" in finding.advice


def test_a_run_of_a_few_steps_says_nothing_unless_it_is_worse_than_guessing():
    facts = Facts(steps=20, vocab_size=1000)
    entries = [*(training(step, 6.9) for step in range(1, 21))]
    assert names([*entries, evaluation(20, mlm=6.8)], facts) == []
    assert names([*entries, evaluation(20, mlm=12.0)], facts) == ["stuck"]


def evaluation(step, mlm, nsp=0.6, frequency=6.0, bigram=4.0):
    values = {"mlm": mlm, "nsp": nsp, "frequency": frequency, "bigram": bigram}
    return {"step": step, **{f"held_out_{name}_loss": value for name, value in values.items()}}


def training(step, loss=5.0, **others):
    return {"step": step, "mlm_loss": loss, "gradient_norm": 1.0, "learning_rate": 1e-3, "skipped_steps": 0, **others}


def names(entries, facts=Facts()):  # noqa: B008 - it is frozen
    return [finding.name for finding in explain(entries, facts)]


def test_a_model_below_bigrams_is_no_alarm():
    [finding] = explain([evaluation(10, 3.9)], Facts())
    assert finding.name == "context"
    assert not finding.is_alarm
    assert str(finding).startswith("after 10 steps the held-out MLM loss, 3.900, is below the loss of bigrams (4.000)")


def test_pairs_at_chance_are_found_once_words_are_learnt():
    assert names([evaluation(10, 4.8, nsp=0.693)]) == ["pairs"]
    assert names([evaluation(10, 5.2, nsp=0.693)]) == []
    assert names([evaluation(10, 4.8, nsp=0.5)]) == []
    assert names([evaluation(10, 4.8, nsp=None)]) == []


def test_learning_by_heart_needs_two_worse_evaluations_and_a_falling_training_loss():
    losses = [training(step, 6 - step / 100) for step in range(10, 60, 10)]
    held_out = [evaluation(10, 5.0), evaluation(20, 4.7), evaluation(30, 4.8)]
    assert names(losses + held_out) == []
    assert names([*losses, *held_out, evaluation(40, 4.9)]) == ["overfitting"]
    assert names([*losses, *held_out, evaluation(40, 4.71)]) == []
    rising = [training(step, 5 + step / 100) for step in range(10, 60, 10)]
    assert names([*rising, *held_out, evaluation(40, 4.9)]) == []


def test_skipped_steps_are_counted():
    entries = [training(10), training(20, skipped_steps=2), training(30, skipped_steps=2)]
    [finding] = explain(entries, Facts())
    assert finding.evidence.startswith("2 of 30 steps were skipped because the gradient was not finite")
    assert "the last one by step 20" in finding.evidence


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        (CorpusFacts("a", 0.0, 1.4, 0.18), []),
        (CorpusFacts("a", 0.0, None, None), []),
        (CorpusFacts("a", 0.0, 1.4, 0.5), ["repeats in a"]),
        (CorpusFacts("a", 0.04, 1.4, 0.1), ["tokenizer of a"]),
        (CorpusFacts("a", 0.0, 2.6, 0.1), ["tokenizer of a"]),
        (CorpusFacts("a", 0.04, None, 0.1), ["tokenizer of a"]),
    ],
)
def test_corpora_are_judged_by_their_counts(corpus, expected):
    assert names([training(10)], Facts(corpora=(corpus,))) == expected


def test_a_trained_tokenizer_is_never_made_for_other_text():
    for per_word, is_foreign in ((1.4, True), (None, False)):
        [finding] = explain([training(10)], Facts(corpora=(CorpusFacts("a", 0.04, per_word, 0.1),)))
        assert ("made for other text" in finding.evidence) == is_foreign
        assert ("--tokenizer" in finding.advice) == is_foreign


# Clauses without spaces between their words, "we test a program", "a program reads a long text" and so on.
THAI = (
    "เราทดสอบโปรแกรม", "โปรแกรมอ่านข้อความยาว", "ข้อความยาวมีหลายประโยค", "เราเขียนประโยคใหม่", "โปรแกรมทดสอบประโยคยาว",
    "ข้อความใหม่มีโปรแกรม", "เราอ่านหลายข้อความ", "ประโยคใหม่ยาว",
)  # fmt: skip
ENGLISH = "tensor", "gradient", "bucket", "reduce", "schedule", "optimizer", "checkpoint", "corpus", "sentence"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A function that prepares documents of random words, and returns the folder."""

    def prepare_words(words, **settings):
        folder, draws = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
        documents = ["\n".join(" ".join(draws.choice(words, 6)) + "." for _ in range(5)) for _ in range(30)]
        (folder / "text.txt").write_text("\n\n".join(documents))
        prepare([folder / "text.txt"], folder / "corpus", held_out=0.0, **settings)
        return folder / "corpus"

    return prepare_words


def corpus_facts(folder):
    settings = CURVES["py"]["settings"]
    config = from_dict({**settings, "run_folder": "run", "data": settings["data"] | {"path": str(folder)}})
    [found] = facts_from(config, open_mixture(config), KeptCounts()).corpora
    return found


def test_a_clause_of_a_script_without_spaces_is_no_word(prepared):
    trained = prepared(THAI, vocab_size=90)
    assert Corpus.open(trained).contents.tokens > 2.4 * Corpus.open(trained).contents.words
    assert corpus_facts(trained).tokens_per_word is None
    given = corpus_facts(prepared(THAI, tokenizer=trained / "tokenizer"))
    assert given.tokens_per_word == pytest.approx(1.0)
    assert "tokenizer of corpus" not in names([training(10)], Facts(corpora=(given,)))


def test_a_tokenizer_of_other_words_cuts_them_into_many_tokens(prepared):
    others = prepared(["".join(sorted(word)) for word in ENGLISH], vocab_size=70)
    given = corpus_facts(prepared(ENGLISH, tokenizer=others / "tokenizer"))
    assert given.tokens_per_word > 2.4
    assert "tokenizer of corpus" in names([training(10)], Facts(corpora=(given,)))


def test_a_tokenizer_that_cannot_be_read_says_nothing(prepared):
    trained = prepared(ENGLISH, vocab_size=90)
    folder = prepared(ENGLISH, tokenizer=trained / "tokenizer")
    path = folder / "tokenizer" / "tokenizer.json"
    path.write_bytes(b"?" * path.stat().st_size)
    assert math.isnan(corpus_facts(folder).tokens_per_word)


JUNK = (None, 0, -1.0, 1e99, -1e99, math.nan, math.inf, True, 1, 6.0)


def test_no_log_ends_a_run():
    draws = np.random.default_rng(0)
    keys = sorted({key for curve in CURVES.values() for entry in entries_of(curve) for key in entry} - {"step"})
    facts = Facts(100, 0, 1024, corpora=(CorpusFacts("a", math.nan, math.nan, math.nan),))
    for _ in range(20):
        entries = []
        for _ in range(int(draws.integers(0, 60))):
            chosen = draws.choice(keys, draws.integers(0, len(keys) + 1), replace=False)
            entry = {str(key): JUNK[draws.integers(len(JUNK))] for key in chosen}
            entries.append({"step": int(draws.integers(0, 100)), **entry})
        for given in (facts, Facts()):
            said(entries, given)
            [str(finding) for finding in explain(entries, given)]


def test_a_log_that_cannot_be_read_says_nothing(tmp_path):
    assert findings_in(tmp_path / "nowhere", Facts()) == []
    (tmp_path / METRICS_FILE).write_bytes(b"\xff{}\n[1]\n" + json.dumps({"step": 3}).encode())
    assert findings_in(tmp_path, Facts()) == []
