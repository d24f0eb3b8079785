"""Supervision: what it refuses. Its rule is in test_restart_rule.py, whole runs in faults/test_restarts.py."""

import sys

import pytest

from lucid.launch import supervise


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--min-ranks", "1"), "--min-ranks goes with --hostfile: only a host that is lost makes the ranks fewer"),
        (("--min-ranks", "3"), "--min-ranks is 3, but the run starts with 2: lower it"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_one_sentence(monkeypatch, capsys, options, sentence):
    monkeypatch.setattr(sys, "argv", ["supervise", "--restarts", "1", *options, "-n", "2", "run.yaml"])
    with pytest.raises(SystemExit) as leaving:
        supervise.main()
    assert leaving.value.code == 2
    assert capsys.readouterr() == ("", f"supervise: {sentence}\n")
