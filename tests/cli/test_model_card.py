"""The model card that an export gets."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from lucid.cli import main
from lucid.data import Corpus

BEGINNING = re.compile(r"---\n.*?\n---\n\n# ", re.DOTALL)


def rows_of(card):
    """The values in the second column of the card's tables, by the first; the first table that has a label counts."""
    rows = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in reversed(rows) if len(row) == 2}


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    """The folder that the run was exported to."""
    folder = tmp_path_factory.mktemp("exported") / "a|b <i> *c* [d]"
    with pytest.raises(SystemExit):
        main(["export", str(run_folder), str(folder)])
    return folder


@pytest.fixture(scope="module")
def longer_run(run_folder, tmp_path_factory):
    """The same run after three more steps, with the checkpoints of step 6 and 9."""
    run = shutil.copytree(run_folder, tmp_path_factory.mktemp("longer") / "run")
    with pytest.raises(SystemExit):
        main(["train", str(run_folder.with_name("run.yaml")), f"run_folder={run}", "train.steps=9"])
    return run


def test_the_card_of_an_export_has_its_data_results_and_digests(exported, run_folder, corpus_folder):
    card = (exported / "README.md").read_text()
    assert BEGINNING.match(card)
    assert f"on {corpus_folder.name}, from random weights." in card
    rows = rows_of(card)
    assert rows["tokens"] == f"{Corpus.open(corpus_folder).token_count:,}"
    assert rows["samples"] == "24"
    assert rows["`model.hidden_size`"] == "16"
    assert float(rows["held-out MLM loss"]) > 0
    assert re.fullmatch("`[0-9a-f]{64}`", rows["weights"])
    assert str(exported.parent) not in card
    assert str(run_folder) not in card
    assert str(corpus_folder) not in card


def test_the_metadata_are_those_of_the_hub(exported):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard.load(exported / "README.md").data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["bert", "pretraining", "lucid"],
    }


def test_an_earlier_checkpoint_has_the_results_of_its_own_step(lucid, longer_run, tmp_path):
    lucid("export", longer_run / "checkpoints/0001-00000006", tmp_path / "early")
    lucid("export", longer_run, tmp_path / "late")
    early, late = (rows_of((tmp_path / name / "README.md").read_text()) for name in ("early", "late"))
    assert (early["evaluated after step"], late["evaluated after step"]) == ("6", "9")
    assert (early["samples"], late["samples"]) == ("24", "36")


def test_a_checkpoint_alone_has_a_card_of_what_it_knows(lucid, run_folder, tmp_path):
    (checkpoint,) = (run_folder / "checkpoints").glob("0001-*6")
    shutil.copytree(checkpoint, tmp_path / "alone")
    assert lucid("export", tmp_path / "alone", tmp_path / "model")[0] == 0
    rows = rows_of((tmp_path / "model/README.md").read_text())
    assert rows["`model.hidden_size`"] == "16"
    assert "least held-out loss (MLM + NSP)" in rows
    assert "held-out MLM loss" not in rows


def test_the_model_that_a_run_started_from_is_named_and_linked_if_it_is_of_the_hub(lucid, run_folder, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "models--group--bert-of-ours/snapshots/0123abcd"
    lucid("export", run_folder, snapshot)
    overrides = f"run_folder={tmp_path / 'run'}", f"initial_model={snapshot}"
    assert lucid("train", run_folder.with_name("run.yaml"), *overrides, "train.steps=3")[0] == 0
    lucid("export", tmp_path / "run", tmp_path / "model")
    card = hub.ModelCard.load(tmp_path / "model/README.md")
    assert card.data.base_model == "group/bert-of-ours"
    assert "from the weights of group/bert-of-ours." in card.text


def test_the_card_of_another_model_is_copied(lucid, exported, tmp_path):
    model = shutil.copytree(exported, tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: mit\n---\nTheirs.\n")
    lucid("export", model, tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text() == "---\nlicense: mit\n---\nTheirs.\n"
    (model / "README.md").unlink()
    lucid("export", model, tmp_path / "third")
    card = (tmp_path / "third/README.md").read_text()
    assert "## Training" not in card
    assert "## How to use it" in card


def test_the_card_of_a_model_of_sentence_transformers_embeds(lucid, exported, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    model = shutil.copytree(exported, tmp_path / "model")
    (model / "README.md").unlink()
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    lucid("export", model, tmp_path / "again")
    card = hub.ModelCard.load(tmp_path / "again/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "SentenceTransformer" in card.text


def test_the_card_of_a_mean_names_its_checkpoints(lucid, longer_run, tmp_path):
    assert lucid("average", longer_run, tmp_path / "mean", "--last", 2)[0] == 0
    card = (tmp_path / "mean/README.md").read_text()
    assert "the mean of those of 2 checkpoints (steps 6, 9)" in card
    rows = rows_of(card)
    assert rows["6"] != rows["9"]


def test_names_do_not_break_the_card(exported):
    assert r"# a\|b &lt;i&gt; \*c\* \[d\]" in (exported / "README.md").read_text()


@pytest.mark.skipif(not find_spec("transformers") or not find_spec("torch"), reason="transformers is not installed")
def test_the_code_of_the_card_runs(exported):
    code = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=exported,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(finished.stdout.splitlines()) == 5
