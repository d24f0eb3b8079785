"""What a run notes of each of its starts."""

import platform

import pytest

from lucid.data import HELD_OUT, Corpus
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ExitCode
from lucid.training import run
from lucid.training.attempts import ATTEMPTS_FILE, read_attempts
from lucid.training.config import load
from lucid.training.trainer import Trainer


def train(run_file, *overrides, stopped=False):
    stop = StopRequest()
    stop.requested = stopped
    return run(load(run_file, ["train.steps=6", *overrides]), SingleCommunicator(), stop)


def test_each_start_notes_where_it_runs_and_how_it_ends(run_file, corpus_folder, tmp_path):
    assert train(run_file, stopped=True) == ExitCode.STOPPED
    assert train(run_file, "train.accept_changed=[seed]", "train.seed=3") == ExitCode.FINISHED
    first, second = read_attempts(tmp_path / "run")
    assert (first.number, first.first_step, first.end.step, first.end.how) == (1, 0, 0, "stopped")
    assert (second.number, second.first_step, second.end.step, second.end.how) == (2, 0, 6, "finished")
    assert first.began <= first.end.time <= second.began <= second.end.time
    assert first.hosts == (platform.node(),)
    assert first.locations[0].ranks == "0"
    assert (first.config["train"]["seed"], second.config["train"]["seed"]) == (0, 3)
    assert first.software.keys() >= {"lucid", "Python", "NumPy"}
    corpus = Corpus.open(corpus_folder)
    (noted,) = first.corpora
    assert (noted.name, noted.share, noted.identity) == (corpus_folder.name, 1.0, corpus.identity)
    assert (noted.documents, noted.tokens) == (corpus.document_count, corpus.token_count)
    assert noted.held_out_documents == corpus.documents_in(HELD_OUT)


def test_the_error_that_ends_a_run_is_noted(run_file, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "loop", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(run_file)
    (attempt,) = read_attempts(tmp_path / "run")
    assert (attempt.end.how, attempt.end.message) == ("failed", "division by zero")


def test_a_run_goes_on_if_its_attempts_cannot_be_noted(run_file, tmp_path, capsys):
    (tmp_path / "run" / ATTEMPTS_FILE).mkdir(parents=True)
    assert train(run_file) == ExitCode.FINISHED
    assert capsys.readouterr().out.count(f"{ATTEMPTS_FILE} could not be written: Is a directory") == 1


def test_damaged_lines_are_left_out_and_a_new_number_may_repeat_an_old_one(run_file, tmp_path):
    train(run_file)
    path = tmp_path / "run" / ATTEMPTS_FILE
    start, end = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(start + b"{" + start[:90] + b"\n\xff\n[[[\n12\n{}\n" + end + start)
    first, second = read_attempts(tmp_path / "run")
    assert (first.end.how, second.end) == ("finished", None)
    assert read_attempts(tmp_path / "elsewhere") == []


def test_a_torn_line_takes_no_other_with_it(run_file, tmp_path):
    train(run_file, stopped=True)
    path = tmp_path / "run" / ATTEMPTS_FILE
    path.write_bytes(path.read_bytes()[:-9])  # the end of attempt 1
    train(run_file)
    first, second = read_attempts(tmp_path / "run")
    assert (first.end, second.number, second.end.how) == (None, 2, "finished")
