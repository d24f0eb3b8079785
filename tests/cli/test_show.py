"""`lucid show`: what it prints, the losses of training, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from isolation import REPOSITORY
from tiny_run import RUN

from lucid.analysis.samples import Segment, Token
from lucid.cli import main
from lucid.cli.show.step import joined
from lucid.data.origins import Origins
from lucid.training.checkpoints.checkpoint import read_state

LEGEND = "[a|b] is a token to predict"


@pytest.fixture(scope="module")
def steady_run(corpus_folder, tmp_path_factory):
    """A run without dropout, which logs each step and keeps its checkpoints."""
    folder = tmp_path_factory.mktemp("steady")
    model = RUN["model"] | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    train = RUN["train"] | {"log_every": 1, "checkpoint_every": 2, "keep_checkpoints": 9}
    data = {"path": str(corpus_folder), "sequence_length": 32}
    settings = {**RUN, "model": model, "train": train, "run_folder": str(folder / "run"), "data": data}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(folder / "run.yaml")])
    assert leaving.value.code == 0
    return folder / "run"


def objects(output):
    return [json.loads(line) for line in output.splitlines()]


def test_the_rows_of_a_step_are_printed_with_their_marks_and_places(lucid, run_folder, corpus_folder):
    code, output, errors = lucid("show", run_folder, "--step", 2, "--rank-of", 2, "--rows", "1-2")
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0] == "step 2 of 6: rows 1 to 2 of 4 (others: --rows FIRST-LAST or all)"
    assert lines[1].startswith(LEGEND)
    heads = [line for line in lines if line.startswith("row ")]
    assert re.fullmatch(r"row 1  sample 5 of the run, 5 of epoch 1; rank [01], micro-batch 0", heads[0])
    assert re.fullmatch(r"row 2  sample 6 of the run, 6 of epoch 1; rank [01], micro-batch 0", heads[1])
    assert len(re.findall(r"^  A  made_up\.txt:\d+$", output, re.MULTILINE)) == 2
    assert len(re.findall(r"^  B  made_up\.txt:\d+, NSP label [01]: (?:it follows|random)$", output, re.MULTILINE)) == 2
    assert re.search(r"\[MASK\|\S+\]", output)
    assert "\x1b" not in output
    # Pieces of words are joined, but for those to predict.
    assert not re.search(r" ##", output)


def test_rows_of_an_earlier_version_were_dealt_in_another_way(lucid, run_folder, monkeypatch):
    monkeypatch.setattr("lucid.cli.show.step.read_state", lambda folder: replace(read_state(folder), ranks=None))
    remark = "an earlier version of lucid trained this step: its ranks had rows by place, rank 0 the first ones\n"
    for ranks, expected in ((2, remark), (1, "")):
        assert lucid("show", run_folder, "--step", 2, "--rank-of", ranks)[2] == expected
    assert lucid("show", run_folder, "--step", 2)[2] == ""


def test_a_terminal_gets_colours_and_lines_that_fit(lucid, run_folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")
    output = lucid("show", run_folder, "--step", 2)[1]
    assert re.search(r"\x1b\[33m\[MASK\|", output)
    text = [line for line in re.sub(r"\x1b\[[\d;]*m", "", output).splitlines() if line.startswith("     ")]
    assert len(text) > 12
    assert max(len(line.rstrip()) for line in text) <= 60


def test_the_output_before_a_run_is_that_of_the_run(lucid, run_folder):
    before = lucid("show", run_folder.parent / "run.yaml", "--step", 5, "--json", "run_folder=/nowhere")
    assert before == lucid("show", run_folder, "--step", 5, "--json")
    assert len(objects(before[1])) == 4


@pytest.mark.parametrize("step", [3, 5])
def test_losses_are_those_of_training(lucid, steady_run, step):
    code, output, _ = lucid("show", steady_run, "--step", step, "--rows", "all", "--loss", "--json", "--rank-of", 4)
    assert code == 0
    rows = objects(output)
    assert {row["checkpoint"] for row in rows} == {step - 1}
    assert sorted((row["rank"], row["micro_batch"]) for row in rows) == [(rank, 0) for rank in range(4)]
    sums = {name: sum(row["losses"][name] for row in rows) for name in ("mlm", "masked", "nsp", "pairs")}
    assert sums["masked"] == sum(
        label is not None
        for row in rows
        for sequence in row["sequences"]
        for segment in sequence["segments"]
        for label in segment["labels"]
    )
    logged = [json.loads(line) for line in (steady_run / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in logged if line["step"] == step and "mlm_loss" in line]
    assert sums["mlm"] / sums["masked"] == pytest.approx(line["mlm_loss"], rel=1e-5)
    assert sums["nsp"] / sums["pairs"] == pytest.approx(line["nsp_loss"], rel=1e-5)
    text = lucid("show", steady_run, "--step", step, "--rows", "all", "--loss")[1].splitlines()[-1]
    assert text.startswith(f"rows 0 to 3 at the checkpoint of step {step - 1}: MLM loss {line['mlm_loss']:.3f} over ")
    assert text.endswith(f" tokens, NSP loss {line['nsp_loss']:.3f}")


def test_a_run_resumed_with_other_settings_shows_what_it_trained_on(lucid, steady_run, tmp_path):
    before = lucid("show", steady_run, "--step", 5, "--rows", "all", "--json")
    copy, settings = tmp_path / "copy", steady_run.parent / "run.yaml"
    shutil.copytree(steady_run, copy)
    changed = ["train.global_batch=6", "train.seed=5", "data.mlm_probability=0.3", "data.sequence_length=24"]
    changed += [f"run_folder={copy}", "train.accept_changed=[seed]", "train.keep_checkpoints=2"]
    for steps in (8, 9):
        assert lucid("train", settings, *changed, f"train.steps={steps}")[0] == 0
    # Checkpoints with the first settings are gone.
    assert lucid("show", copy, "--step", 5, "--rows", "all", "--json") == before
    logged = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["mlm_loss"] for line in logged if "mlm_loss" in line}
    shown = objects(lucid("show", copy, "--step", 9, "--rows", "all", "--loss", "--json")[1])
    assert len(shown) == 6
    mean = sum(row["losses"]["mlm"] for row in shown) / sum(row["losses"]["masked"] for row in shown)
    assert mean == pytest.approx(losses[9], rel=1e-5)
    # Its settings of today say the same of its past; those that it began with are not its own any more.
    assert lucid("show", settings, "--step", 5, "--rows", "all", "--json", *changed) == before
    code, _, errors = lucid("show", settings, "--step", 5, f"run_folder={copy}")
    assert (code, errors.count("\n")) == (2, 1)
    assert f"{copy} has trained with other settings than those of {settings} (" in errors
    assert "train.seed is 5 there, and 0 here" in errors


def test_a_change_of_corpora_divides_the_steps_that_are_listed(lucid, steady_run, corpus_folder, tmp_path):
    copy, text, other = tmp_path / "copy", tmp_path / "other.txt", tmp_path / "other"
    shutil.copytree(steady_run, copy)
    text.write_text("\n\n".join(f"zi ba {number}. ba zi. zi zi." for number in range(9)))
    assert (
        lucid("prepare", text, "--output", other, "--tokenizer", corpus_folder / "tokenizer", "--processes", 1)[0] == 0
    )
    paths = f"data.path=[{{path: {corpus_folder}, weight: 1}}, {{path: {other}, weight: 1}}]"
    changed = [f"run_folder={copy}", "train.accept_changed=[corpus]", "train.steps=8", paths]
    assert lucid("train", steady_run.parent / "run.yaml", *changed)[0] == 0
    code, output, errors = lucid("show", copy, "--document", "other.txt:1")
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert "changed after step 6: choose steps before or after that with --steps" in errors
    assert lucid("show", copy, "--document", "other.txt:3", "--steps", "7-8")[0] == 0


def test_a_corpus_of_an_earlier_version_has_numbers_for_documents(lucid):
    old = REPOSITORY / "tests" / "golden" / "run_0.1.0"
    code, output, errors = lucid("show", old / "run", "--step", 2, f"data.path={old / 'corpus'}")
    assert (code, errors.count("\n")) == (0, 1)
    assert errors.startswith("an earlier version of lucid trained steps 1 to 4 and did not note changes of settings: ")
    assert re.search(r"^  A  document \d+$", output, re.MULTILINE)
    assert "Prepare it again with --overwrite to see them." in output
    code, _, errors = lucid("show", old / "run", "--document", "text.txt:1", f"data.path={old / 'corpus'}")
    assert (code, errors.count("\n")) == (2, 1)
    assert "did not note where documents come from" in errors


def test_the_checkpoint_for_losses_can_be_chosen(lucid, steady_run):
    code, output, _ = lucid("show", steady_run, "--step", 2, "--rows", 3, "--loss", "--checkpoint", 6)
    assert code == 0
    assert "row 3 at the checkpoint of step 6, which has trained on them: MLM loss" in output


def test_a_document_is_followed_through_the_run(lucid, steady_run):
    (row,) = objects(lucid("show", steady_run, "--step", 3, "--rows", 1, "--json")[1])
    segment = row["sequences"][0]["segments"][0]
    number, place = segment["document"], segment["origin"]
    code, output, errors = lucid("show", steady_run, "--document", place)
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith(f"{place}, document {number:,} for training, ")
    assert "step 3, row 1: epoch 1" in lines
    assert re.fullmatch(r"in \d+ samples?, \d+ of them up to the newest checkpoint \(step 6\)", lines[-2])
    first = int(re.match(r"step (\d)", lines[1])[1])
    newest = steady_run / f"checkpoints/0001-{2 * ((first - 1) // 2):08d}"
    assert lines[-1] == (
        "all checkpoints that are there have seen it"
        if first <= 2
        else f"the newest checkpoint that has not seen it: {newest}"
    )
    found = objects(lucid("show", steady_run, "--document", place, "--json", "--steps", "3-4")[1])
    assert {each["step"] for each in found} <= {3, 4}
    assert found[0].keys() == {"corpus", "document", "origin", "step", "row", "epoch", "random"}
    assert not next(each for each in found if (each["step"], each["row"]) == (3, 1))["random"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say what to show: one of --step, --document and --text"),
        (("--step", 1, "--text", "x"), "say what to show: one of"),
        (("--step", 7), "the run has no step 7: its steps are 1 to 6"),
        (("--step", 0), "the run has no step 0"),
        (("--step", 1, "--rows", "2-4"), "there is no row 4: the rows of the global batch are 0 to 3"),
        (("--step", 1, "--rows", "3-2"), "--rows is '3-2': give a number from 0 on, or a range such as 0-9"),
        (("--step", 1, "--rows", "-1"), "--rows is '-1'"),
        (("--step", 1, "--rank-of", 5), "train.global_batch is 4, but 5 ranks take at least one"),
        (("--step", 1, "--steps", "1-2"), "--steps is for --document and --text: leave it out"),
        (("--text", "ba", "--loss"), "--loss is for --step: leave it out"),
        (("--step", 1, "--checkpoint", 6), "--checkpoint is for the losses: add --loss"),
        (("--step", 1, "--loss", "--checkpoint", 5), "there is no checkpoint of step 5, but of "),
        (("--document", "made_up.txt:2"), "no document in .* begins at made_up.txt:2; the last one before it begins"),
        (("--document", "other.txt:1"), "was not made from other.txt, but from made_up.txt"),
        (("--document", "made_up.txt:1", "--steps", "3-9"), "the run has no step 7"),
        (("--text", "ba"), "documents have this text: give more of it"),
        (("--text", " "), "--text has no tokens"),
        (("--text", "ba \udcff"), "--text holds bytes that are not UTF-8"),
        (("--document", f"made_up.txt:{'9' * 5000}"), "FILE:LINE"),
        (("--text", "zi zi zi zi zi zi zi"), "no document for training has this text in one piece"),
        (("--step", 1, "train.seed=1"), "only data.path can be given anew"),
        (("--step", 1, "data.path=/nowhere"), r"corpus of the run is not at /nowhere: say where it is \(data.path="),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_a_sentence(lucid, steady_run, arguments, message):
    code, output, errors = lucid("show", steady_run, *arguments)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert re.search(message, errors), errors


def test_a_held_out_document_is_said_to_be_so(lucid, steady_run, corpus_folder):
    origins = Origins.open(corpus_folder, "held_out")
    assert origins is not None
    (place,) = origins.of(np.array([0]))
    answer = f"the document at {place} is held out: no step trains on it\n"
    assert lucid("show", steady_run, "--document", place) == (0, answer, "")
    assert lucid("show", steady_run, "--document", place, "--json") == (0, "", answer)


def test_a_damaged_checkpoint_is_named(lucid, steady_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(steady_run, copy)
    weights = copy / "checkpoints" / "0001-00000004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert lucid("show", copy, "--step", 5)[0] == 0
    code, _, errors = lucid("show", copy, "--step", 5, "--loss")
    assert (code, errors.count("\n")) == (2, 1)
    assert "model.safetensors was altered" in errors
    (copy / "checkpoints" / "0001-00000006" / "state.json").write_text("{}")
    code, _, errors = lucid("show", copy, "--step", 5)
    assert (code, errors.count("\n")) == (0, 1)
    assert errors.startswith("skipped a damaged checkpoint: ")


def test_pieces_are_joined_to_the_words_that_are_there():
    tokens = [("[CLS]", None), ("##ing", None), ("a", None), ("##b", None), ("[MASK]", "c"), ("[MASK]", "##d")]
    tokens += [("##e", None), ("x", "##f"), ("g", "g"), ("##h", None), ("[SEP]", None)]
    how = {"[MASK]": "masked", "x": "replaced", "g": "kept"}
    segment = Segment(0, 0, None, tuple(Token(seen, true, how[seen] if true else None) for seen, true in tokens))
    assert joined(segment).plain == "[CLS] ##ing ab [MASK|c][MASK|##d]e[x|##f] [g|g]h [SEP]"
