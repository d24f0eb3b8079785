"""Checkpoints and models from a stranger: they are loaded, or refused in a sentence, and take no memory then."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import damaged, damaged_json, refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_of
from small_checkpoints import snapshot, trained_model

from lucid.errors import CheckpointError
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.checkpoint import open_checkpoint, write_checkpoint

MANIFEST = "manifest.json"
NAMES = [MANIFEST, "state.json", "config.json", "model.safetensors", "optimizer.safetensors"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tests may read but not alter."""
    folder = tmp_path_factory.mktemp("whole") / "0001-00000001"
    write_checkpoint(folder, snapshot(trained_model()))
    return folder


@pytest.fixture(scope="module")
def folder(whole: Path) -> Path:
    """Where copies of it lie that have been damaged."""
    return whole.parent / "damaged"


def damage(whole: Path, folder: Path, name: str, content: bytes) -> None:
    """Make `folder` a copy of the checkpoint, but for one file; but for the manifest's own, its manifest fits."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    (folder / name).write_bytes(content)
    if name != MANIFEST:
        checksums = json.loads((folder / MANIFEST).read_bytes())
        checksums[name] = hashlib.sha256(content).hexdigest()
        (folder / MANIFEST).write_text(json.dumps(checksums))


def use(folder: Path) -> None:
    """Do with a checkpoint what going on and `lucid predict` do."""
    checkpoint = open_checkpoint(folder)
    assert 0 <= checkpoint.state.step < 2**63
    checkpoint.load(*trained_model())
    BERTForPreTraining.from_pretrained(folder)


def test_the_checkpoint_of_these_tests_is_usable(whole: Path) -> None:
    use(whole)


@pytest.mark.filterwarnings("ignore:.*newly initialised")
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_used_or_refused(whole: Path, folder: Path, name: str, data: st.DataObject) -> None:
    damage(whole, folder, name, data.draw(damaged((whole / name).read_bytes())))
    message = refusal(CheckpointError, lambda: use(folder))
    assert message is None or str(folder) in message


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "config.json"])
@settings(max_examples=100)
@given(data=st.data())
def test_hostile_values_are_used_or_refused(whole: Path, folder: Path, name: str, data: st.DataObject) -> None:
    content = data.draw(damaged_json(json.loads((whole / name).read_bytes())))
    damage(whole, folder, name, json.dumps(content).encode())
    message = refusal(CheckpointError, lambda: use(folder))
    assert message is None or str(folder) in message


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "config.json"])
def test_json_that_is_nested_too_deeply_is_refused(whole: Path, folder: Path, name: str) -> None:
    damage(whole, folder, name, b"[" * 100_000)
    with pytest.raises(CheckpointError):
        use(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("step", "7"), ("step", -1), ("step", 2**64), ("step", None), ("config", []), ("corpus", 3)]
)
def test_a_state_of_the_wrong_types_is_refused(whole: Path, folder: Path, key: str, value: object) -> None:
    content = json.loads((whole / "state.json").read_bytes())
    damage(whole, folder, "state.json", json.dumps({**content, key: value}).encode())
    with pytest.raises(CheckpointError, match=rf"is damaged: .*{key}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "..", "", "a\0b", "\ud800", "pipe"])
def test_a_manifest_names_files_of_its_folder_only(whole: Path, folder: Path, name: str) -> None:
    checksums = json.loads((whole / MANIFEST).read_bytes())
    damage(whole, folder, MANIFEST, json.dumps({**checksums, name: "0"}).encode())
    os.mkfifo(folder / "pipe")
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_manifest_without_a_file_is_refused(whole: Path, folder: Path, name: str) -> None:
    checksums = json.loads((whole / MANIFEST).read_bytes())
    del checksums[name]
    damage(whole, folder, MANIFEST, json.dumps(checksums).encode())
    with pytest.raises(CheckpointError, match=rf"{name} was altered"):
        open_checkpoint(folder)


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HOSTILE_TENSORS = {
    "nothing": b"",
    "huge header": safetensors({}, length=2**63),
    "header beyond the end": safetensors({}, length=90_000_000),
    "deep header": safetensors(b"[" * 100_000),
    "no object": safetensors([]),
    "overlapping": safetensors({"a": entry("F32", [2], 0, 8), "b": entry("F32", [2], 4, 12)}, bytes(12)),
    "beyond the end": safetensors({"a": entry("F32", [2**40], 0, 2**42)}, bytes(8)),
    "negative": safetensors({"a": entry("F32", [-2], 0, -8)}, bytes(8)),
    "backwards": safetensors({"a": entry("F32", [2], 8, 0)}, bytes(8)),
    "overflow": safetensors({"a": entry("F32", [2**32, 2**32, 2**32], 0, 8)}, bytes(8)),
    "unknown type": safetensors({"a": entry("F31", [2], 0, 8)}, bytes(8)),
    "small floats": safetensors({"bert.pooler.dense.bias": entry("F8_E4M3", [8], 0, 8)}, bytes(8)),
    "complex": safetensors({"bert.pooler.dense.bias": entry("C64", [8], 0, 64)}, bytes(64)),
    "pickle": b"\x80\x04K\x01." * 10,
}


@pytest.mark.filterwarnings("ignore:.*newly initialised")
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("kind", HOSTILE_TENSORS)
def test_hostile_tensors_are_refused(whole: Path, folder: Path, name: str, kind: str) -> None:
    damage(whole, folder, name, HOSTILE_TENSORS[kind])
    with pytest.raises(CheckpointError, match=name):
        use(folder)


@pytest.mark.parametrize("change", ["shape", "missing"])
def test_moments_that_do_not_fit_are_refused(whole: Path, folder: Path, change: str) -> None:
    tensors = load_file(whole / "optimizer.safetensors")
    name = "first_moment.bert.embeddings.word_embeddings.weight"
    if change == "shape":
        tensors[name] = np.zeros((1, 1), np.float32)
    else:
        del tensors[name]
    damage(whole, folder, "optimizer.safetensors", safetensors_of(tensors))
    with pytest.raises(CheckpointError, match=rf"optimizer\.safetensors does not fit the model: .*{name}"):
        use(folder)


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size"])
def test_a_model_larger_than_its_file_is_refused_before_memory_is_taken(whole: Path, folder: Path, name: str) -> None:
    content = json.loads((whole / "config.json").read_bytes())
    damage(whole, folder, "config.json", json.dumps({**content, name: 10_000 if "layers" in name else 2**30}).encode())
    with pytest.raises(CheckpointError, match=r"config\.json asks for"):
        BERTForPreTraining.from_pretrained(folder)
