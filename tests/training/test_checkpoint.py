"""Invariant 6: a checkpoint is whole or it isn't there."""

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from small_checkpoints import CONFIG, snapshot, trained_model

import lucid
from lucid.data import Corpus
from lucid.errors import CheckpointError, DataError
from lucid.models import BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW, OneProcess
from lucid.training.checkpoints.checkpoint import open_checkpoint, write_checkpoint
from lucid.training.checkpoints.store import CheckpointStore, find_model

FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture
def folder(tmp_path):
    """A checkpoint."""
    path = tmp_path / "checkpoints" / "0001-00000005"
    write_checkpoint(path, snapshot(trained_model(), step=5))
    return path


def rewrite(path, content):
    """Replace a file of a checkpoint and its checksum, as anyone who makes checkpoints can."""
    path.write_bytes(content)
    manifest_file = path.parent / "manifest.json"
    manifest = json.loads(manifest_file.read_text())
    manifest_file.write_text(json.dumps(manifest | {path.name: sha256(content).hexdigest()}))


@pytest.mark.parametrize(
    ("config", "untrained"),
    [
        ({"data": {"nsp": False}}, ["pooler", "NSP head"]),
        ({"data": {"nsp": False}, "initial_model": "a/model"}, []),
        ({"data": {"nsp": True}}, []),
    ],
)
def test_what_an_old_checkpoint_has_not_trained_follows_from_its_settings(folder, config, untrained):
    state = json.loads((folder / "state.json").read_text())
    del state["inherited"]
    state["config"] |= config
    rewrite(folder / "state.json", json.dumps(state).encode())
    assert open_checkpoint(folder).state.inherited.untrained == untrained


def test_a_saved_checkpoint_can_be_loaded(tmp_path):
    trained, window = trained_model(), (0.1, 2.0, 3.0, float("nan"), 5.0, 6.0)
    written = snapshot(trained, step=3)
    write_checkpoint(tmp_path / "whole", replace(written, state=replace(written.state, window=window)))
    lucid.manual_seed(99)
    model = BERTForPreTraining(CONFIG)
    optimizer = AdamW(OneProcess(flatten(model)))
    checkpoint = open_checkpoint(tmp_path / "whole")
    assert checkpoint.state.step == 3
    np.testing.assert_array_equal(checkpoint.state.window, window)
    optimizer.restore(checkpoint.load(model, optimizer), checkpoint.state.optimizer_updates)
    for name, array in trained[0].state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    for name, array in trained[1].moments().items():
        np.testing.assert_array_equal(optimizer.moments()[name], array)
    kinds = "first_moment", "second_moment"
    assert set(trained[1].moments()) == {f"{kind}.{name}" for kind in kinds for name in model.state_dict()}
    assert optimizer.updates == 1


def test_users_who_can_read_the_folder_can_read_all_its_files(tmp_path):
    before = os.umask(0o022)
    try:
        write_checkpoint(tmp_path / "whole", snapshot(trained_model()))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "whole").iterdir()} == {0o644}


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed", "a folder", "a pipe"])
def test_damage_is_found_and_the_file_is_named(folder, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    match damage:
        case "flipped":
            path.write_bytes(content)
        case "truncated":
            path.write_bytes(content[:-1])
        case "a folder":
            path.mkdir()
        case "a pipe":
            os.mkfifo(path)
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        open_checkpoint(folder)
    assert name in str(caught.value) or name == "manifest.json"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"../../etc/passwd": "0"}', '{"state.json": "0"}', '{"state.json": 0}', "null", "[" * 9999],
)
def test_a_damaged_manifest_is_a_checkpoint_error(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"format_version": 99}, "another version of lucid"),
        ({"step": "many"}, "step is missing or of the wrong kind"),
        ({"window": [1.0]}, "window.1 is missing or of the wrong kind"),
        ({"config": None}, "config is missing or of the wrong kind"),
    ],
)
def test_an_impossible_state_is_refused(folder, change, fragment):
    state = json.loads((folder / "state.json").read_text()) | change
    rewrite(folder / "state.json", json.dumps(state).encode())
    with pytest.raises(CheckpointError, match=fragment):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_arrays_of_another_shape_are_refused(folder, name):
    other = replace(CONFIG, vocab_size=21)
    write_checkpoint(folder.parent / "other", snapshot(trained_model(other), config=other))
    rewrite(folder / name, (folder.parent / "other" / name).read_bytes())
    model = BERTForPreTraining(CONFIG)
    with pytest.raises(CheckpointError, match=rf"{name}.* has shape"):
        open_checkpoint(folder).load(model, AdamW(OneProcess(flatten(model))))


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return (open, (str(self.made), "w"))


def test_a_pickle_is_never_loaded_from_any_file(folder, tmp_path):
    payload = pickle.dumps(Payload(tmp_path / "made"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "extra.pkl"):
        (folder / name).write_bytes(payload)

    def read_all():
        model = BERTForPreTraining.from_pretrained(folder)
        open_checkpoint(folder).load(model, AdamW(OneProcess(flatten(model))))

    read_all()
    for name in FILES:
        content = (folder / name).read_bytes()
        rewrite(folder / name, payload)
        with pytest.raises(CheckpointError):
            read_all()
        rewrite(folder / name, content)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle, which lucid does not read"):
        read_all()
    assert not (tmp_path / "made").exists()


def test_a_corpus_with_pickled_objects_is_refused_unread(corpus_folder, tmp_path):
    copy = tmp_path / "corpus"
    copy.mkdir()
    for path in corpus_folder.iterdir():
        (copy / path.name).symlink_to(path)
    tokens = next(copy.rglob("*.tokens.npy"))
    size = tokens.stat().st_size
    tokens.unlink()
    np.save(tokens, np.array([Payload(tmp_path / "made")], dtype=object), allow_pickle=True)
    with tokens.open("ab") as file:  # of the size that the manifest asks for
        file.truncate(size)
    with pytest.raises(DataError, match="is damaged"):
        Corpus.open(copy)
    assert not (tmp_path / "made").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from lucid.models.bert import hub
from lucid.training.checkpoints import checkpoint, store
from small_checkpoints import snapshot, trained_model

def half_written(path, tensors, write=hub.write_tensors):
    write(path, tensors)
    if path.name == sys.argv[2]:
        os.truncate(path, 1000)
        os.kill(os.getpid(), signal.SIGKILL)

hub.write_tensors = half_written
store.CheckpointStore(Path(sys.argv[1])).claim(2, None).save(snapshot(trained_model(), step=9))
"""


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_writer_killed_in_the_middle_leaves_the_earlier_checkpoint(folder, name):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder.parent), name], env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    half = folder.parent / ".partial-0002-00000009"
    assert (half / name).stat().st_size == 1000
    checkpoint, problems = CheckpointStore(folder.parent).newest()
    assert (checkpoint.folder, problems) == (folder, [])
    next_start = CheckpointStore(folder.parent).claim(2, folder)
    assert next_start.number == 3
    next_start.save(snapshot(trained_model(), step=7))
    assert not half.exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        ".incarnation-0003",
        "0001-00000005",
        "0003-00000007",
    ]


def test_a_model_is_found_by_run_checkpoint_or_folder(folder, tmp_path):
    write_checkpoint(folder.with_name("0002-00000003"), snapshot(trained_model(), step=3))
    assert find_model(tmp_path) == folder.with_name("0002-00000003")
    assert find_model(folder) == folder
    with pytest.raises(CheckpointError, match="neither a run's folder nor a model's"):
        find_model(tmp_path / "elsewhere")
