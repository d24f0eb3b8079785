"""The checkpoints of one run: `checkpoints/<attempt>-<step>/`, such as `0003-00001000`.

Each start of a run is an attempt with its own number. The newest checkpoint is the latest step of the latest attempt.
A stale process of an older attempt may still write after a scheduler has restarted the run; its checkpoints neither
replace nor hide newer ones. So no lock is needed.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lucid.errors import CheckpointError
from lucid.training.checkpoints.checkpoint import (
    ASIDE,
    Checkpoint,
    Snapshot,
    TrainingState,
    open_checkpoint,
    read_state,
    write_checkpoint,
)

# An empty folder with this prefix and a number claims an attempt. The prefix is part of the format.
_MARKER = ".incarnation-"
_NAME = re.compile(rf"({re.escape(ASIDE)}|{re.escape(_MARKER)})?(\d{{4,}})(?:-(\d{{8,}}))?")


class CheckpointKey(NamedTuple):
    """Identifies a checkpoint of a run; a newer checkpoint has a greater key."""

    attempt: int
    step: int


class CheckpointStore:
    """All checkpoints of a run: finds the newest whole one, and claims the attempt that writes further ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_any(self) -> bool:
        """Return whether the folder holds any checkpoint, whole or damaged."""
        return bool(_checkpoints(self.folder))

    def states(self) -> tuple[dict[Path, TrainingState], list[str]]:
        """Return the states of the run's checkpoints by their folders, the newest first, and sentences about damage.

        A checkpoint that belongs to no newer one's past is left out. Only the files with the states are read. Raises
        `CheckpointError` as `newest` does.
        """
        states: dict[Path, TrainingState] = {}
        problems: list[str] = []
        for folder in _checkpoints(self.folder).values():
            try:
                state = read_state(folder)
            except CheckpointError as error:
                problems.append(str(error))
                continue
            if all(state.step < newer.step for newer in states.values()):
                states[folder] = state
        if problems and not states:
            raise self._unusable(problems[0])
        return states, problems

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint, if any, and one sentence about each newer checkpoint that is damaged.

        Raises `CheckpointError` if all checkpoints are damaged, so that a run never starts over unasked.
        """
        problems: list[str] = []
        for folder in _checkpoints(self.folder).values():
            try:
                return open_checkpoint(folder), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise self._unusable(problems[0])
        return None, problems

    def at(self, step: int) -> Checkpoint | None:
        """Return the whole checkpoint of `step`, None for step 0. Raises `CheckpointError` if there is none."""
        if step == 0:
            return None
        found = {state.step: folder for folder, state in self.states()[0].items()}
        if step not in found:
            known = ", ".join(map(str, sorted(found))) or "no step"
            raise CheckpointError(f"{self.folder} has no checkpoint of step {step}, but of {known}")
        return open_checkpoint(found[step])

    def _unusable(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"no checkpoint in {self.folder} can be used ({problem}): repair it, or move the folder away to start over"
        )

    def claim(self, keep: int, resumed: Path | None) -> "Attempt":
        """Return a new attempt, which resumes from `resumed` and keeps the newest `keep` checkpoints.

        No two attempts get the same number: `mkdir` succeeds once, on shared file systems as well. Raises
        `CheckpointError` if the folder cannot be written.
        """
        number = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                number = max(number, _latest_attempt(self.folder)) + 1
                try:
                    (self.folder / f"{_MARKER}{number:04d}").mkdir()
                except FileExistsError:
                    continue
                # Since we looked, later attempts may have taken this number and more, and removed its marker.
                if _latest_attempt(self.folder) == number:
                    return Attempt(self.folder, number, keep, resumed)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be written ({error.strerror or error}): choose another run_folder, or fix this"
            ) from error


class Attempt:
    """One start of a run, which writes checkpoints under its number; `newest` is the newest whole checkpoint."""

    def __init__(self, folder: Path, number: int, keep: int, resumed: Path | None) -> None:
        self.folder = folder
        self.number = number
        self.newest = resumed
        self._keep = keep
        self._resumed = _key(resumed.name) if resumed else None

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove the oldest ones.

        Raises `CheckpointError` if the checkpoint cannot be written; earlier ones stay untouched then.
        """
        target = self.folder / f"{self.number:04d}-{snapshot.state.step:08d}"
        try:
            # Before writing: the leftovers of a killed writer may be what fills the disk.
            self._remove_leftovers()
            write_checkpoint(target, snapshot)
        except OSError as error:
            before = f"the newest whole one is {self.newest}" if self.newest else "there is none before it"
            raise CheckpointError(
                f"checkpoint {target} could not be written: {error.strerror or error}; {before}"
            ) from error
        self.newest = target
        self._remove_old()

    def _remove_leftovers(self) -> None:
        """Remove unfinished checkpoints and markers of older attempts."""
        for path in self.folder.iterdir():
            if path.name.startswith((ASIDE, _MARKER)) and 0 < _attempt_of(path.name) < self.number:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self) -> None:
        """Remove all but the newest `keep` checkpoints of this and older attempts.

        Checkpoints of older attempts that are newer than the resumed one are either damaged or written by a stale
        process. They are removed too, so that they do not count among those kept.
        """
        found = {key: path for key, path in _checkpoints(self.folder).items() if key.attempt <= self.number}
        resumed = self._resumed or CheckpointKey(0, 0)
        lineage = [path for key, path in found.items() if key.attempt == self.number or key <= resumed]
        for path in set(found.values()) - set(lineage[: self._keep]):
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> dict[CheckpointKey, Path]:
    """Return the checkpoints in `folder`, whole or damaged, newest first."""
    found = {key: path for path in _entries(folder) if (key := _key(path.name))}
    return dict(sorted(found.items(), reverse=True))


def _latest_attempt(folder: Path) -> int:
    return max((_attempt_of(path.name) for path in _entries(folder)), default=0)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _key(name: str) -> CheckpointKey | None:
    match = _NAME.fullmatch(name)
    return CheckpointKey(int(match[2]), int(match[3])) if match and match[3] and not match[1] else None


def _attempt_of(name: str) -> int:
    """Return the number of the attempt that an entry belongs to, 0 for any other entry."""
    match = _NAME.fullmatch(name)
    return int(match[2]) if match else 0


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the newest whole checkpoint of the run in `path`, or the checkpoint in `path` itself.

    Raises `CheckpointError` if there is none, or if it is damaged.
    """
    if not (path / "checkpoints").is_dir():
        return open_checkpoint(path)
    checkpoint, _ = CheckpointStore(path / "checkpoints").newest()
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint yet: train longer")
    return checkpoint


def find_model(path: Path) -> Path:
    """Return the model folder for `path`: the newest checkpoint of a run, or else `path` itself.

    Raises `CheckpointError` if there is no model.
    """
    if (path / "checkpoints").is_dir():
        return find_checkpoint(path).folder
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path} is neither a run's folder nor a model's (it has no config.json)")
    return path
