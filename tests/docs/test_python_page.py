"""docs/python.md: its examples run in their order, and print what they show."""

import doctest
from dataclasses import replace

import pytest
from isolation import REPOSITORY
from markdown_it import MarkdownIt
from tiny_bert import CONFIG

import lucid
from lucid import data, models

PAGE = REPOSITORY / "docs" / "python.md"


@pytest.fixture
def folders(corpus_folder, tmp_path, monkeypatch):
    """The folders that the page names, in the working folder: a corpus and a model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "python-docs").symlink_to(corpus_folder)
    lucid.manual_seed(0)
    config = replace(CONFIG, vocab_size=200, max_position_embeddings=128)
    models.BERTForPreTraining(config).save_pretrained("runs/by_hand/model")
    data.save_tokenizer(data.load_tokenizer(corpus_folder / "tokenizer"), "runs/by_hand/model")


def test_the_examples_print_what_they_show(folders):
    blocks = [token for token in MarkdownIt("commonmark").parse(PAGE.read_text()) if token.info == "python"]
    assert len(blocks) > 8
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    names, report = {}, []
    for block in blocks:
        assert block.content.startswith(">>> ")
        # One namespace for all: a test would clear its own at its end.
        test = parser.get_doctest(block.content, names, PAGE.name, str(PAGE), block.map[0] + 1)
        test.globs = names
        runner.run(test, out=report.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
