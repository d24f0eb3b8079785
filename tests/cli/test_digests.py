"""What an export says about the origin of its weights."""

import hashlib
import json

from lucid.data import Corpus
from lucid.training.checkpoints.store import find_model
from lucid.training.config import load
from lucid.training.digests import settings_digest


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_export_has_the_digests_of_what_its_weights_come_from(lucid, run_folder, corpus_folder, tmp_path):
    assert lucid("export", run_folder, tmp_path / "model")[0] == 0
    digests = json.loads((tmp_path / "model/digests.json").read_text())
    assert (digests["step"], digests["samples"], digests["ranks"]) == (6, 24, 1)
    assert digests["weights"] == sha256(tmp_path / "model/model.safetensors")
    assert digests["checkpoint_weights"] == sha256(find_model(run_folder) / "model.safetensors")
    assert digests["corpus"] == Corpus.open(corpus_folder).identity
    assert digests["settings"] == settings_digest(load(run_folder.with_name("run.yaml")).as_dict())
    assert digests["software"].keys() == {"lucid", "Python", "NumPy", "sources of lucid"}


def test_a_model_without_a_run_is_exported_without_digests(lucid, run_folder, tmp_path):
    lucid("export", run_folder, tmp_path / "model")
    assert lucid("export", tmp_path / "model", tmp_path / "again")[0] == 0
    assert not (tmp_path / "again/digests.json").exists()


def test_settings_that_change_no_loss_do_not_change_their_digest(run_file):
    def digest(*overrides):
        return settings_digest(load(run_file, overrides).as_dict())

    assert (
        digest("train.checkpoint_every=7", "run_folder=elsewhere", "data.workers=3", "train.audit_every=5") == digest()
    )
    assert digest("initial_model=a") == digest("branch_from=b") == digest("optimizer.sharded=true") == digest()
    for decisive in ("optimizer.learning_rate=1.0e-3", "train.seed=1", "model.num_hidden_layers=1", "train.steps=51"):
        assert digest(decisive) != digest()
