"""Arrays by name in files of safetensors: `lucid.save` and `lucid.load`. A file is written whole or not at all."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16, which safetensors then reads
import numpy as np
import safetensors
from safetensors.numpy import save_file

from lucid import backend
from lucid.autograd import Tensor
from lucid.errors import CheckpointError
from lucid.files import check_is_file, reason_of, replacing

# Between the name of a mapping and a name in it.
_SEPARATOR = "/"
# The format keeps this name for itself.
_RESERVED = "__metadata__"


def save(state: Mapping[str, Any], path: str | Path) -> None:
    """Write tensors, arrays and numbers by name to the file `path`, as safetensors, whole or not at all.

    A value may also be a mapping of this kind: `{"model": model.state_dict(), "step": 100}`. An empty one leaves no
    trace in the file. Of several ranks the first alone saves. Raises `TypeError` for a value of another kind,
    `ValueError` for a name with a slash and for `__metadata__`, and `CheckpointError` if the file cannot be written.
    """
    try:
        write_arrays(Path(path), dict(_arrays(state)))
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {reason_of(error)}") from error


def load(path: str | Path) -> dict[str, Any]:
    """Return what `save` has written: NumPy arrays by name, in mappings as they were. A number is an array, too.

    It reads any file of safetensors. Raises `CheckpointError` if the file cannot be read.
    """
    state: dict[str, Any] = {}
    try:
        check_is_file(Path(path))
        with safetensors.safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  # no dict
                *folders, name = key.split(_SEPARATOR)
                place = state
                for folder in folders:
                    place = place.setdefault(folder, {})
                place[name] = file.get_tensor(key)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    return state


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write C-contiguous NumPy arrays by name, whole or not at all. Raises `OSError` if they cannot be written.

    The arrays are not copied, and other threads run meanwhile.
    """
    try:
        with replacing(path) as aside:
            # The library would make a file that only its owner can read. A file made here has the wanted permissions.
            aside.touch()
            permissions = stat.S_IMODE(aside.stat().st_mode)
            save_file(dict(arrays), aside, metadata={"format": "pt"})
            aside.chmod(permissions)
    except safetensors.SafetensorError as error:
        raise _as_os_error(error, path) from error


def _arrays(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and arrays; those of mappings in it have its name and a slash before their own."""
    for name, value in state.items():
        if not isinstance(name, str) or _SEPARATOR in name or name == _RESERVED:
            takes = f"it takes text without {_SEPARATOR!r}, but not {_RESERVED!r}"
            raise ValueError(f"{name!r} is not a name to save by: {takes}")
        if isinstance(value, Mapping):
            yield from _arrays(value, f"{prefix}{name}{_SEPARATOR}")
            continue
        array = backend.to_host(value.data if isinstance(value, Tensor) else value)
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"{prefix}{name} is a {type(value).__name__}: save takes tensors, arrays and numbers")
        yield prefix + name, np.ascontiguousarray(array).reshape(array.shape)  # numbers got an axis


def _as_os_error(error: safetensors.SafetensorError, path: Path) -> OSError:
    """Return the error of the operating system that the library mentions in its own text."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is None:
        return OSError(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path))
