"""The commands, from text to an exported model, run in this process."""

import json
import re
import shutil
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from tiny_run import RUN

from lucid.launch.limits import HostMemory
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.hub import WEIGHTS_FILE
from lucid.training.checkpoints.checkpoint import OPTIMIZER_FILE
from lucid.training.checkpoints.store import find_checkpoint


def test_training_prints_the_paths_of_its_results(lucid, run_folder):
    code, output, _ = lucid("train", run_folder.parent / "run.yaml")
    assert code == 0
    assert "resumes from step 6" in output
    counts = r"\(by token frequency: \d\.\d+, by bigrams: \d\.\d+\)"
    assert re.search(rf"held out: MLM loss \d\.\d+ {counts}, perplexity", output)
    for line in ("checkpoint  ", "metrics     ", "loss plot   "):
        (found,) = [found for found in output.splitlines() if found.startswith(line)]
        assert Path(found.removeprefix(line)).exists()


def test_the_metrics_are_json_lines(run_folder):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["step"] for line in lines if "held_out_mlm_loss" in line][:2] == [3, 6]
    assert {"mlm_loss", "nsp_accuracy", "sequences_per_second", "gradient_norm", "learning_rate"} <= lines[0].keys()
    assert all(line["model_flops_per_second"] > 0 for line in lines if "loss" in line)


def test_the_settings_can_be_printed(lucid, run_folder):
    code, output, _ = lucid("train", run_folder.parent / "run.yaml", "train.steps=99", "--print-config")
    assert code == 0
    assert yaml.safe_load(output)["train"]["steps"] == 99


def test_the_home_in_an_option_is_the_users(lucid, run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lucid("plot", run_folder, "--output=~/curve.svg")[:2] == (0, f"{tmp_path}/curve.svg\n")


def test_a_run_is_not_continued_with_another_model_corpus_or_seed(lucid, run_folder):
    file = run_folder.parent / "run.yaml"
    code, _, errors = lucid("train", file, "model.hidden_size=32")
    assert (code, errors.count("\n")) == (2, 1)
    assert "was trained with another model (hidden_size 16 instead of 32)" in errors
    assert "beyond train.steps=3" in lucid("train", file, "train.steps=3")[2]
    code, _, errors = lucid("train", file, "train.seed=5")
    assert (code, errors.count("\n")) == (2, 1)
    assert "trained with train.seed=0" in errors
    assert "or set train.accept_changed to [seed]" in errors


def test_a_refused_start_leaves_nothing(lucid, run_folder):
    before = sorted((run_folder / "checkpoints").iterdir())
    assert lucid("train", run_folder.parent / "run.yaml", "train.seed=5")[0] == 2
    assert sorted((run_folder / "checkpoints").iterdir()) == before


def test_another_corpus_tokenizer_or_seed_can_be_accepted(lucid, run_folder, text_file, tmp_path):
    file, copy = run_folder.parent / "run.yaml", tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    assert lucid("prepare", text_file, "--output", tmp_path / "corpus", "--vocab-size", 190)[0] == 0
    overrides = f"run_folder={copy}", "train.steps=8", f"data.path={tmp_path / 'corpus'}", "train.seed=5"
    code, _, errors = lucid("train", file, *overrides, "train.accept_changed=[corpus,seed]")
    assert (code, errors.count("\n")) == (2, 1)
    assert "with another corpus than" in errors
    assert "and another tokenizer than" in errors
    assert "and train.seed=0: " in errors
    assert "set train.accept_changed to [corpus, tokenizer, seed]" in errors
    code, output, _ = lucid("train", file, *overrides, "train.accept_changed=[corpus,tokenizer,seed]")
    assert code == 0
    assert "and train.seed=0, which is accepted" in output
    # From here on, these are the run's.
    assert lucid("train", file, *overrides)[0] == 0
    assert "train.accept_changed.0" in lucid("train", file, "train.accept_changed=[model]")[2]


def test_dropout_may_change_and_the_change_is_reported(lucid, run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    overrides = f"run_folder={copy}", "model.hidden_dropout_prob=0.2", "model.initializer_range=0.01"
    code, output, _ = lucid("train", run_folder.parent / "run.yaml", *overrides)
    assert code == 0
    change = "settings of model changed: hidden_dropout_prob 0.2 instead of 0.1, initializer_range 0.01 instead of 0.02"
    assert change in output


def test_a_missing_package_is_reported_before_anything_is_written(lucid, run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    overrides = f"run_folder={tmp_path / 'run'}", "train.tensorboard=true"
    assert "tensorboardX is not installed" in lucid("train", run_folder.parent / "run.yaml", *overrides)[2]
    assert not (tmp_path / "run").exists()


def test_commands_take_the_checkpoint_of_the_latest_attempt(lucid, run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    shutil.copytree(copy / "checkpoints/0001-00000006", copy / "checkpoints/0031-00000004")
    assert "0031-00000004" in lucid("export", copy, tmp_path / "model")[1]
    shutil.rmtree(copy / "checkpoints/0001-00000006")
    assert lucid("evaluate", copy, "--samples", 5)[0] == 0
    assert lucid("predict", copy, "ba co [MASK].")[0] == 0


def test_a_damaged_checkpoint_is_skipped_and_named(lucid, run_folder, tmp_path):
    copy, file = tmp_path / "copy", run_folder.parent / "run.yaml"
    shutil.copytree(run_folder, copy)
    shutil.copytree(copy / "checkpoints/0001-00000006", copy / "checkpoints/0031-00000004")
    (copy / "checkpoints/0031-00000004/model.safetensors").write_bytes(b"")
    damage = "skipped a damaged checkpoint: .*0031-00000004/model.safetensors was altered"
    for arguments in (["export", copy, tmp_path / "model"], ["predict", copy, "ba co [MASK]."]):
        code, _, errors = lucid(*arguments)
        assert (code, errors.count("\n")) == (0, 1)
        assert re.match(f"warning: {damage}", errors)
    for number, setting in enumerate(("branch_from", "initial_checkpoint")):
        run = f"{setting}={copy}", f"run_folder={tmp_path / str(number)}", "train.steps=7"
        code, output, _ = lucid("train", file, *run)
        assert code == 0
        assert re.search(damage, output)


def test_a_finished_run_is_evaluated_once_in_its_metrics(lucid, run_folder):
    for _ in range(2):
        assert lucid("train", run_folder.parent / "run.yaml")[0] == 0
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out_mlm_loss" in line] == [3, 6]


def test_a_change_of_settings_is_reported(lucid, run_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    overrides = f"run_folder={copy}", "train.steps=8", "data.sequence_length=16"
    code, output, _ = lucid("train", run_folder.parent / "run.yaml", *overrides)
    assert code == 0
    assert "settings of data changed: sequence_length 16 instead of 32" in output
    assert "settings of train changed: steps 8 instead of 6" in output
    assert (
        "optimizer.name=adamw" in lucid("train", run_folder.parent / "run.yaml", *overrides, "optimizer.name=lamb")[2]
    )


def test_a_model_with_another_tokenizer_is_refused(lucid, run_folder, tmp_path):
    model = tmp_path / "model"
    lucid("export", run_folder, model)
    (model / "tokenizer.json").unlink()
    vocabulary = (model / "vocab.txt").read_text().splitlines()
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    (model / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    corpus = yaml.safe_load((run_folder.parent / "run.yaml").read_text())["data"]["path"]
    assert "was prepared with another tokenizer" in lucid("evaluate", model, "--data", corpus)[2]
    overrides = f"initial_model={model}", f"run_folder={tmp_path / 'run'}"
    assert "was prepared with another tokenizer" in lucid("train", run_folder.parent / "run.yaml", *overrides)[2]


def test_evaluation_names_the_checkpoint_of_a_run_and_prints_one_line(lucid, run_folder):
    code, output, _ = lucid("evaluate", run_folder, "--samples", 5)
    assert code == 0
    checkpoint, result = output.splitlines()
    newest = max((run_folder / "checkpoints").iterdir())
    assert checkpoint == f"checkpoint  {newest}"
    assert result.startswith("held out: MLM loss")
    assert result.endswith("(5 samples)")
    assert lucid("evaluate", newest, "--samples", 5)[1].splitlines() == [result]


def test_prediction_fills_the_masks_and_judges_the_next_sentence(lucid, run_folder):
    code, output, _ = lucid("predict", run_folder, "ba co [MASK] fe [MASK].", "--next", "gi ka lo.", "--top", 3)
    assert code == 0
    first, second, follows = output.splitlines()
    assert re.fullmatch(r"\[MASK\] 1: (\S+ \d+\.\d%(, )?){3}", first)
    assert second.startswith("[MASK] 2: ")
    assert re.fullmatch(r"the second sentence (follows|does not follow) \(\d+\.\d% that it does\)", follows)


def test_a_model_without_pairs_is_evaluated_on_tokens_alone(lucid, run_folder, tmp_path):
    model, corpus = tmp_path / "model", yaml.safe_load((run_folder.parent / "run.yaml").read_text())["data"]["path"]
    lucid("export", run_folder, model)
    BERTForPreTraining(BERTConfig(**{**RUN["model"], "type_vocab_size": 1})).save_pretrained(model)
    # It takes 32 tokens, fewer than what is asked of a model by default.
    _, output, _ = lucid("evaluate", model, "--data", corpus, "--samples", 5)
    assert "MLM loss" in output
    assert "NSP" not in output
    assert "leave out --next" in lucid("predict", model, "ba co.", "--next", "fe.")[2]


def test_a_tokenizer_with_more_tokens_than_its_model_is_refused(lucid, run_folder, tmp_path):
    model = tmp_path / "model"
    lucid("export", run_folder, model)
    BERTForPreTraining(BERTConfig(**{**RUN["model"], "vocab_size": 150})).save_pretrained(model)
    for command in (["predict", model, "ba [MASK]."], ["export", model, tmp_path / "other"]):
        code, _, errors = lucid(*command)
        assert code == 2
        assert "knows 150 tokens, but the tokenizer there has 200" in errors
    assert not (tmp_path / "other").exists()


def test_a_run_without_pairs_refuses_next(lucid, run_folder, tmp_path):
    lucid("train", run_folder.parent / "run.yaml", f"run_folder={tmp_path / 'run'}", "data.nsp=false", "train.steps=1")
    assert "was trained without pairs" in lucid("predict", tmp_path / "run", "ba co.", "--next", "fe.")[2]
    assert lucid("predict", tmp_path / "run", "ba [MASK].")[0] == 0


def test_text_that_is_not_utf_8_is_refused(lucid, run_folder):
    code, _, errors = lucid("predict", run_folder, "ba \udcff [MASK].")
    assert code == 2
    assert "holds bytes that are not UTF-8" in errors


def test_prediction_without_anything_to_predict_is_refused(lucid, run_folder):
    code, _, errors = lucid("predict", run_folder, "ba co.")
    assert code == 2
    assert "put [MASK] into the text" in errors


def test_export_cuts_the_padding_and_keeps_the_scores(lucid, run_folder, tmp_path):
    code, _, _ = lucid("export", run_folder, tmp_path / "model")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "digests.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    padded = BERTForPreTraining.from_pretrained(run_folder / "checkpoints/0001-00000006").eval()
    exported = BERTForPreTraining.from_pretrained(tmp_path / "model").eval()
    assert (padded.config.vocab_size, exported.config.vocab_size) == (208, 200)
    ids = np.array([[2, 40, 41, 3]])
    # Products of another width may add in another order.
    np.testing.assert_allclose(exported(ids)[0].numpy(), padded(ids)[0].numpy()[..., :200], rtol=1e-5, atol=1e-6)
    assert "not an empty folder" in lucid("export", run_folder, tmp_path / "model")[2]


def test_a_run_can_start_from_an_exported_model(lucid, run_folder, tmp_path):
    model = tmp_path / "model"
    lucid("export", run_folder, model)
    file = run_folder.parent / "run.yaml"
    overrides = f"initial_model={model}", f"run_folder={tmp_path / 'next'}", "optimizer.learning_rate=1e-12"
    assert lucid("train", file, *overrides)[0] == 0
    trained = BERTForPreTraining.from_pretrained(tmp_path / "next/checkpoints/0001-00000006").state_dict()
    for name, array in BERTForPreTraining.from_pretrained(model).state_dict().items():
        # The vocabulary is padded again: its first rows are the model's.
        np.testing.assert_allclose(trained[name][: len(array)], array, atol=1e-6)
    elsewhere = f"run_folder={tmp_path / 'other'}", "model.intermediate_size=64"
    assert "has another shape" in lucid("train", file, *overrides, *elsewhere)[2]


def test_a_second_phase_starts_with_weights_and_moments_and_a_new_schedule(lucid, run_folder, tmp_path):
    file, next_run = run_folder.parent / "run.yaml", tmp_path / "next"
    overrides = f"initial_checkpoint={run_folder}", f"run_folder={next_run}", "data.sequence_length=16"
    # One step, too small to move anything much: what is saved is what it began with.
    one_step = "train.steps=1", "optimizer.learning_rate=1e-12", "train.evaluate_every=null"
    code, output, _ = lucid("train", file, *overrides, *one_step)
    assert code == 0
    assert "starts with the weights and moments of" in output
    before, after = (find_checkpoint(folder) for folder in (run_folder, next_run))
    assert (after.state.step, after.state.samples_consumed) == (1, 4)
    assert after.state.optimizer_updates == before.state.optimizer_updates + 1 == 7
    weights, moments = (
        [load_file(one.folder / name) for one in (before, after)] for name in (WEIGHTS_FILE, OPTIMIZER_FILE)
    )
    for name, array in weights[0].items():
        np.testing.assert_allclose(weights[1][name], array, atol=1e-6)
    for name, array in moments[0].items():
        if name.startswith("second_moment"):
            assert (moments[1][name] >= 0.998 * array).all(), name
    # The next start goes on with the new run, whatever has become of the old one.
    code, output, _ = lucid("train", file, *overrides, "train.steps=3", f"initial_checkpoint={tmp_path / 'gone'}")
    assert code == 0
    assert "resumes from step 1" in output


def test_a_second_phase_of_another_kind_is_refused(lucid, run_folder, text_file, tmp_path):
    file = run_folder.parent / "run.yaml"
    overrides = f"initial_checkpoint={run_folder}", f"run_folder={tmp_path / 'next'}"
    for override, fragment in (
        (
            "model.hidden_size=32",
            "was trained with another model (hidden_size 16 instead of 32): choose another initial_chec",
        ),
        ("optimizer.name=lamb", "was trained with optimizer.name=adamw: choose another initial_checkpoint"),
        (f"initial_model={run_folder}", "initial_model and initial_checkpoint are both set"),
        (f"branch_from={run_folder}", "initial_checkpoint and branch_from are both set: a run starts from one of them"),
        (f"run_folder={run_folder}", "initial_checkpoint lies in run_folder"),
        (f"initial_checkpoint={tmp_path}", f"{tmp_path} is not a whole checkpoint: manifest.json is missing"),
    ):
        code, _, errors = lucid("train", file, *overrides, override)
        assert (code, errors.count("\n")) == (2, 1)
        assert fragment in errors
    assert lucid("prepare", text_file, "--output", tmp_path / "corpus", "--vocab-size", 190)[0] == 0
    errors = lucid("train", file, *overrides, f"data.path={tmp_path / 'corpus'}")[2]
    assert "was trained with another tokenizer than" in errors
    assert not (tmp_path / "next").exists()


def test_the_plot_is_drawn_where_asked(lucid, run_folder, tmp_path):
    code, output, _ = lucid("plot", run_folder, "--output", tmp_path / "curve.png")
    assert (code, output.strip()) == (0, str(tmp_path / "curve.png"))
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_masked_held_out_tokens_can_be_plotted(lucid, run_folder, tmp_path):
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["held_out_frequency_loss"] = None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert lucid("plot", tmp_path)[0] == 0


def test_a_plot_of_a_folder_in_any_script_comes_without_a_warning(lucid, run_folder, tmp_path):
    folder = tmp_path / "日本語-தமிழ்-ไทย"
    folder.mkdir()
    shutil.copy(run_folder / "metrics.jsonl", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lucid("plot", folder)[::2] == (0, "")


def test_a_plot_that_cannot_be_drawn_does_not_fail_a_run(lucid, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
    code, output, _ = lucid("train", run_folder.parent / "run.yaml", f"run_folder={tmp_path / 'run'}")
    assert code == 0
    assert "loss plot   none: division by zero" in output


def test_a_plot_is_written_to_the_named_file_or_refused(lucid, run_folder, tmp_path):
    for name in ("curve.pdf", "curve.svg"):
        assert lucid("plot", run_folder, "--output", tmp_path / name)[1] == f"{tmp_path / name}\n"
        assert (tmp_path / name).stat().st_size > 1000
    for place, sentence in (
        (tmp_path / "curve", "the name must end in .png, .pdf or .svg"),
        (tmp_path, "the name must end in .png, .pdf or .svg"),
        (tmp_path / "curve.foo", "could not be drawn"),
        (tmp_path / "nowhere" / "curve.png", "nowhere/curve.png could not be written: No such file or directory"),
    ):
        code, _, errors = lucid("plot", run_folder, "--output", place)
        assert code == 2
        assert sentence in errors


@pytest.mark.parametrize("command", [["plan"], ["train", "--print-config"]])
def test_a_full_output_is_one_sentence(run_folder, tmp_path, command):
    program = [sys.executable, "-m", "lucid", command[0], str(run_folder.with_name("run.yaml")), *command[1:]]
    with open("/dev/full", "w") as full:
        finished = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60, check=False)
    assert finished.returncode == 1
    assert finished.stderr == b"lucid: the output could not be written: No space left on device\n"


def test_an_array_without_room_is_one_sentence(lucid, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(HostMemory, "most", 1 << 80)  # or else the start would refuse this model
    overrides = f"run_folder={tmp_path / 'run'}", "model.hidden_size=2000000000"
    code, _, errors = lucid("train", run_folder.with_name("run.yaml"), *overrides)
    assert code == 1
    assert re.match(r"lucid: memory ran out \(Unable to allocate .*\): lucid plan says what a run takes\n", errors)


def test_plotting_without_matplotlib_says_how_to_get_it(lucid, run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, errors = lucid("plot", run_folder)
    assert code == 2
    assert "pip install matplotlib" in errors


def test_tensorboard_events_are_written_if_asked(lucid, run_folder, tmp_path):
    pytest.importorskip("tensorboardX")
    overrides = f"run_folder={tmp_path / 'run'}", "train.tensorboard=true"
    assert lucid("train", run_folder.parent / "run.yaml", *overrides)[0] == 0
    (events,) = (tmp_path / "run/tensorboard").iterdir()
    assert b"mlm_loss" in events.read_bytes()


def test_each_line_is_written_in_one_piece(run_folder):
    """Several ranks write to one log; an unbuffered Python would write the end of a line separately."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # it keeps apart what is written apart
    with ours, theirs:
        command = [sys.executable, "-u", "-m", "lucid", "plan", str(run_folder.with_name("run.yaml"))]
        subprocess.run(command, stdout=theirs, timeout=60, check=True)
        theirs.close()
        written = list(iter(lambda: ours.recv(1 << 16), b""))
    assert len(written) > 10
    assert all(text.index(b"\n") == len(text) - 1 for text in written)


@pytest.mark.parametrize(
    "command",
    [
        *("prepare", "extend", "plan", "train", "show", "explain", "verify", "evaluate", "predict", "export", "plot"),
        *("log", "report"),
    ],
)
def test_every_command_has_help_with_examples(lucid, command):
    code, output, _ = lucid(command, "--help")
    assert code == 0
    assert f"lucid {command} " in output
    assert "Examples:" in output


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument 'CONFIG' (see lucid train --help)"),
        (["bench", "step", "--fast"], "(see lucid bench step --help)"),
        (["train", "/nowhere/run.yaml"], "/nowhere/run.yaml does not exist"),
        (["plan", "/nowhere/run.yaml"], "/nowhere/run.yaml does not exist"),
        (["show", "/nowhere", "--step", "1"], "/nowhere does not exist"),
        (["verify", "/nowhere"], "/nowhere does not exist"),
        (["evaluate", "/nowhere"], "/nowhere is neither a run's folder nor a model's"),
        (["predict", "/nowhere", "x [MASK]"], "/nowhere is neither a run's folder nor a model's"),
        (["export", "/nowhere", "/nowhere/else"], "/nowhere is neither a run's folder nor a model's"),
        (["plot", "/nowhere"], "/nowhere/metrics.jsonl does not exist"),
        (["report", "/nowhere"], "/nowhere/metrics.jsonl does not exist"),
        (["explain", "/nowhere"], "/nowhere/metrics.jsonl does not exist"),
        (["prepare", "/nowhere", "--output", "/tmp/never-made"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(lucid, arguments, fragment):
    code, _, errors = lucid(*arguments)
    assert code == 2
    assert fragment in errors
    assert errors.splitlines()[-1].startswith("lucid: ")
    assert "Traceback" not in errors
