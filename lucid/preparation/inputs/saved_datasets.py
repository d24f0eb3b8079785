"""Folders that `save_to_disk` of Hugging Face's `datasets` writes.

One `Dataset` is a folder of Arrow files, which `state.json` lists; other Arrow files there are the caches of `map`. A
`DatasetDict` is a folder with such a folder for each split.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lucid.errors import DataError
from lucid.files import read_bytes, reason_of
from lucid.json_values import parse_json

_STATE, _INFO, _DICT = "state.json", "dataset_info.json", "dataset_dict.json"


def listed_files(folder: Path, names: Collection[str]) -> set[str] | None:
    """Return the files of the dataset that is saved in `folder`, which holds `names`; None if none is.

    Raises `DataError` if the list is damaged, or names a file that is not there.
    """
    if not {_STATE, _INFO} <= set(names):
        return None
    state = _object(folder / _STATE)
    try:
        listed = {str(entry["filename"]) for entry in state["_data_files"]}
    except (KeyError, TypeError) as error:
        raise _damaged(folder / _STATE, "it lists no files") from error
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} was saved by an old version of datasets with a list of selected rows: load it there with "
            "load_from_disk, and save flatten_indices() of it"
        )
    if missing := sorted(listed - set(names)):
        raise DataError(f"{folder / missing[0]} is missing, though state.json lists it: copy the dataset again")
    return listed


def is_passed_over(name: str, listed: Collection[str] | None) -> bool:
    """Return whether a file is not to be read: one that describes a dataset, or an Arrow file that is not `listed`."""
    if listed is None:
        return name == _DICT
    return name in (_STATE, _INFO) or (name.endswith(".arrow") and name not in listed)


def saved_splits(folder: Path) -> list[str]:
    """Return the names of the splits of the `DatasetDict` that is saved in `folder`; empty if none is."""
    if not (folder / _DICT).is_file():
        return []
    splits = _object(folder / _DICT).get("splits")
    if not splits or not isinstance(splits, list):
        raise _damaged(folder / _DICT, "it lists no splits")
    return sorted(map(str, splits))


def _object(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(path))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise _damaged(path, reason_of(error)) from error
    return content


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path} is damaged ({problem}): copy the dataset again")
