"""A pipe in the place of any file that a command reads is refused in a sentence: to open it would wait for ever."""

import os
import shutil
import signal

import pytest
from small_run import write_settings

from lucid.cli import main


@pytest.fixture(scope="module")
def whole(corpus_folder, tmp_path_factory):
    """A corpus, the settings of a run, the run, and an exported model."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(corpus_folder, folder / "corpus")
    settings = write_settings(folder / "run.yaml", folder / "corpus", folder / "run")
    assert code_of("train", settings, "train.steps=6", "train.log_every=6") == 0
    assert code_of("export", folder / "run", folder / "model") == 0
    (folder / "hosts").write_text("localhost\n")
    (folder / "text.txt").write_text("one\n\ntwo\n")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, with settings that name the copy."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    write_settings(tmp_path / "run.yaml", tmp_path / "corpus", tmp_path / "run")
    return tmp_path


def code_of(*arguments):
    with pytest.raises(SystemExit) as leaving:
        main([str(argument) for argument in arguments])
    return leaving.value.code


@pytest.fixture
def in_time():
    """Ends the test if it waits for a pipe."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


TRAIN, PREDICT, MODEL = ("train", "run.yaml"), ("predict", "run", "a [MASK]."), ("predict", "model", "a [MASK].")
CHECKPOINT = "run/checkpoints/0001-00000006"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (TRAIN, "run.yaml"),
        (TRAIN, "corpus/manifest.json"),
        (TRAIN, "corpus/train-00000.tokens.npy"),
        (TRAIN, "corpus/tokenizer/tokenizer.json"),
        (TRAIN, "run/metrics.jsonl"),
        ((*TRAIN, "run_folder=new", "initial_model=model"), "model/model.safetensors"),
        ((*TRAIN, "run_folder=new", "initial_checkpoint=run"), f"{CHECKPOINT}/optimizer.safetensors"),
        (("plan", "run.yaml"), f"{CHECKPOINT}/state.json"),
        (PREDICT, f"{CHECKPOINT}/manifest.json"),
        (PREDICT, f"{CHECKPOINT}/model.safetensors"),
        (MODEL, "model/config.json"),
        (MODEL, "model/model.safetensors"),
        (MODEL, "model/tokenizer.json"),
        (("evaluate", "model", "--data", "corpus"), "model/model.safetensors"),
        (("export", "model", "exported"), "model/config.json"),
        (("plot", "run"), "run/metrics.jsonl"),
        (("explain", "run"), "run/metrics.jsonl"),
        (("log", "run"), "run/metrics.jsonl"),
        (("prepare", "text.txt", "--output", "new"), "text.txt"),
        (("prepare", "text.txt", "--output", "new", "--tokenizer", "model"), "model/tokenizer.json"),
        (("launch", "-n", "1", "run.yaml"), "run.yaml"),
        (("launch", "-n", "1", "--hostfile", "hosts", "run.yaml"), "hosts"),
    ],
)
def test_a_pipe_is_refused_in_a_sentence(arguments, name, copy, in_time, monkeypatch, capsys):
    monkeypatch.chdir(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    before = sorted(copy.rglob("*"))
    assert code_of(*arguments) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1, errors
    assert name.rpartition("/")[2] in errors
    assert sorted(copy.rglob("*")) == before
