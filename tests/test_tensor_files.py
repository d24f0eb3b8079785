"""`lucid.save` and `lucid.load`: what was saved comes back, or an error says why."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lucid
from lucid import nn, optim
from lucid.errors import CheckpointError


def test_arrays_come_back_in_their_mappings_with_their_dtypes(tmp_path):
    arrays = {
        dtype.__name__: np.arange(6).reshape(2, 3).astype(dtype)
        for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, np.bool_)
    }
    state = {
        "inner": {"deeper": arrays, "other": {}},
        "a.b": lucid.tensor([1.5, 2]),
        "step": 7,
        "rate": 0.25,
        "on": True,
    }
    lucid.save(state | {"transposed": arrays["float32"].T}, tmp_path / "state")
    back = lucid.load(str(tmp_path / "state"))
    assert back.keys() == {"inner", "a.b", "step", "rate", "on", "transposed"}
    assert back["inner"].keys() == {"deeper"}
    for name, array in arrays.items():
        got = back["inner"]["deeper"][name]
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    assert (int(back["step"]), float(back["rate"]), bool(back["on"])) == (7, 0.25, True)
    assert list(range(back["step"])) == list(range(7))
    np.testing.assert_array_equal(back["a.b"], [1.5, 2])
    np.testing.assert_array_equal(back["transposed"], arrays["float32"].T)
    assert load_file(tmp_path / "state").keys() >= {"inner/deeper/float32", "a.b", "step"}


def test_a_training_state_comes_back(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = optim.AdamW(model.parameters(), lr=0.1)
    model(lucid.ones(4, 3)).sum().backward()
    optimizer.step()
    lucid.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state")
    other = nn.Linear(3, 2)
    again, back = optim.AdamW(other.parameters()), lucid.load(tmp_path / "state")
    other.load_state_dict(back["model"])
    again.load_state_dict(back["optimizer"])
    assert again.updates == 1
    np.testing.assert_array_equal(other.weight.numpy(), model.weight.numpy())


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"config": {"name": "base"}}, TypeError, "config/name is a str: save takes tensors, arrays and numbers"),
        ({"x": None}, TypeError, "x is a NoneType"),
        ({"a/b": 1}, ValueError, "'a/b' is not a name to save by: it takes text without '/'"),
        ({"__metadata__": 1}, ValueError, "'__metadata__' is not a name to save by"),
        ({1: 1}, ValueError, "1 is not a name to save by"),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(state, error, message, tmp_path):
    lucid.save({"x": 1}, tmp_path / "state")
    with pytest.raises(error, match=message):
        lucid.save(state, tmp_path / "state")
    assert lucid.load(tmp_path / "state") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_files_that_cannot_be_written_or_read_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no/state could not be written: No such file"):
        lucid.save({"x": 1}, tmp_path / "no" / "state")
    with pytest.raises(CheckpointError, match=r"state cannot be read: No such file"):
        lucid.load(tmp_path / "state")
    (tmp_path / "state").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="state cannot be read"):
        lucid.load(tmp_path / "state")
    lucid.save({"a": {"b": 1}}, tmp_path / "state")
    (tmp_path / "state").write_bytes((tmp_path / "state").read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="state cannot be read"):
        lucid.load(tmp_path / "state")
    save_file({"a": np.ones(2), "a/b": np.ones(1)}, tmp_path / "state")  # a is an array and a mapping
    with pytest.raises(CheckpointError, match="state cannot be read"):
        lucid.load(tmp_path / "state")
