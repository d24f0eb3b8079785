"""Law 6: a checkpoint is whole or it isn't there."""

import json
import resource
import signal
from dataclasses import replace

import numpy as np
import pytest

import lucid
from lucid.errors import CheckpointError
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW
from lucid.training.checkpoint import CheckpointStore, TrainingState, find_model, open_checkpoint

CONFIG = BERTConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)
STATE = TrainingState(
    step=1,
    samples_consumed=8,
    optimizer_updates=1,
    skipped_steps=0,
    skipped_in_a_row=0,
    corpus="abc",
    config={"train": {"seed": 0}},
)


@pytest.fixture
def trained():
    """A model and an optimizer with moments."""
    model = BERTForPreTraining(CONFIG)
    optimizer = AdamW(flatten(model))
    generator = np.random.default_rng(0)
    optimizer.flat.gradients[:] = generator.standard_normal(len(optimizer.flat.gradients))
    optimizer.step(1e-3)
    return model, optimizer


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", keep=2)


def save(store, trained, step):
    return store.save(replace(STATE, step=step), *trained, tokenizer_files=[])


def test_what_was_saved_comes_back(store, trained):
    save(store, trained, 3)
    lucid.manual_seed(99)
    model = BERTForPreTraining(CONFIG)
    optimizer = AdamW(flatten(model))
    checkpoint, problems = store.newest()
    assert problems == []
    assert checkpoint.state.step == 3
    checkpoint.load(model, optimizer)
    for name, array in trained[0].state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], array)
    for name, array in trained[1].state_dict().items():
        np.testing.assert_array_equal(optimizer.state_dict()[name], array)
    assert optimizer.updates == 1


def test_the_newest_are_kept(store, trained):
    for step in (1, 2, 10):
        save(store, trained, step)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000002", "step-00000010"]
    assert store.newest()[0].state.step == 10


def test_none_is_there_before_the_first(store):
    assert store.newest() == (None, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "config.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "removed"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store, trained, name, damage):
    save(store, trained, 1)
    path = save(store, trained, 2) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flipped" else content[:-1])
    checkpoint, (problem,) = store.newest()
    assert checkpoint.state.step == 1
    assert name in problem


def test_a_run_does_not_start_over_when_no_checkpoint_can_be_used(store, trained):
    for step in (1, 2):
        (save(store, trained, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used .*state\.json is missing"):
        store.newest()


def test_a_damaged_later_checkpoint_does_not_push_out_a_new_one(tmp_path, trained):
    store = CheckpointStore(tmp_path, keep=1)
    (save(store, trained, 1000) / "state.json").unlink()
    assert save(store, trained, 600).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000600"]


def test_a_full_disk_says_so_and_leaves_the_checkpoint_before(store, trained):
    save(store, trained, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(CheckpointError, match="could not be written"):
            save(store, trained, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert store.newest()[0].state.step == 1


@pytest.mark.parametrize("content", ["", "[]", '{"../../etc/passwd": "0"}', '{"state.json": "0"}', "null"])
def test_a_damaged_manifest_is_an_error_of_ours(store, trained, content):
    folder = save(store, trained, 1)
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def test_a_kill_while_writing_leaves_the_checkpoint_before(store, trained):
    save(store, trained, 1)
    aside = store.folder / ".partial-step-00000002"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert store.newest()[0].state.step == 1
    save(store, trained, 2)
    assert not aside.exists()
    assert store.newest()[0].state.step == 2


def test_a_checkpoint_that_cannot_be_written_says_so(store, trained):
    save(store, trained, 1)
    (store.folder / ".partial-step-00000002").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"could not be written: .*; the checkpoints before it are whole"):
        save(store, trained, 2)
    assert store.newest()[0].state.step == 1


def test_a_checkpoint_of_another_version_is_refused(store, trained):
    folder = save(store, trained, 1)
    state = json.loads((folder / "state.json").read_text()) | {"format_version": 99}
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="another version"):
        open_checkpoint(folder)


def test_a_model_is_found_by_run_checkpoint_or_folder(store, trained, tmp_path):
    newest = save(store, trained, 5)
    assert find_model(tmp_path) == newest
    assert find_model(newest) == newest
    with pytest.raises(CheckpointError, match="neither the folder of a run nor that of a model"):
        find_model(tmp_path / "elsewhere")
