"""The checkpoints of one run: `checkpoints/<attempt>-<step>/`, such as `0003-00001000`.

Each start of a run is an attempt with its own number. The newest checkpoint is the latest step of the latest attempt.
A stale process of an older attempt may still write after a scheduler has restarted the run; its checkpoints neither
replace nor hide newer ones. So no lock is needed.

Which checkpoint is the best follows from the states in them; no file or link says it, which could be out of date.
"""

import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lucid.errors import CheckpointError
from lucid.training.checkpoints.best import Best
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


@dataclass(frozen=True)
class _Kept:
    """Which checkpoints of a run are kept: the `newest` ones, those of multiples of `every` steps, and the `best`."""

    newest: int
    every: int | None = None
    best: bool = False


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

    def newest_state(self) -> TrainingState | None:
        """Return the newest state, if any; its checkpoint may be damaged. Raises `CheckpointError` as `newest` does."""
        return next(iter(self.states()[0].values()), None)

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

    def best(self) -> Path:
        """Return the checkpoint with the least held-out loss of the run. Only the files with the states are read.

        Raises `CheckpointError` if the run has not evaluated yet, or if that checkpoint is not there.
        """
        states, _ = self.states()
        newest = next(iter(states.values()), None)
        if newest is None or newest.best is None:
            raise CheckpointError(f"{self.folder} has no checkpoint with a held-out loss yet: set train.evaluate_every")
        found = _best(states, newest.best)
        if found is None or states[found].step != newest.best.step:
            kept = "train.keep_best and train.patience keep it"
            instead = f"the best one that is there is {found}" if found else kept
            raise CheckpointError(
                f"the best checkpoint of {self.folder.parent}, of step {newest.best.step:,}, is not there: {instead}"
            )
        return found

    def _unusable(self, problem: str) -> CheckpointError:
        return CheckpointError(
            f"no checkpoint in {self.folder} can be used ({problem}): repair it, or move the folder away to start over"
        )

    def claim(self, newest: int, resumed: Path | None, *, every: int | None = None, best: bool = False) -> "Attempt":
        """Return a new attempt, which resumes from `resumed`.

        It keeps the `newest` checkpoints, those of multiples of `every` steps, and the `best`, and removes others.
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
                    return Attempt(self.folder, number, _Kept(newest, every, best), resumed)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be written ({error.strerror or error}): choose another run_folder, or fix this"
            ) from error


class Attempt:
    """One start of a run, which writes checkpoints under its number; `newest` is the newest whole checkpoint."""

    def __init__(self, folder: Path, number: int, kept: _Kept, resumed: Path | None) -> None:
        self.folder = folder
        self.number = number
        self.newest = resumed
        self._kept = kept
        self._resumed = _key(resumed.name) if resumed else None

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint with the least held-out loss is kept."""
        return self._kept.best

    @property
    def is_stale(self) -> bool:
        """Whether a later attempt has begun, which does not go on from what this one still writes."""
        with suppress(OSError):  # the next checkpoint asks again
            return _latest_attempt(self.folder) > self.number
        return False

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove those that are not kept.

        Raises `CheckpointError` if the checkpoint cannot be written; earlier ones stay untouched then.
        """
        target = self._target(snapshot.state.step)
        if target.exists() and not self.is_stale:
            self._begin_another()
            target = self._target(snapshot.state.step)
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
        with suppress(OSError):  # the next checkpoint tries again
            self._remove_old(snapshot.state.best)

    def _target(self, step: int) -> Path:
        return self.folder / f"{self.number:04d}-{step:08d}"

    def _begin_another(self) -> None:
        """Go on under another number: a run that ends may have evaluated after it has saved its last step."""
        self.number = CheckpointStore(self.folder).claim(self._kept.newest, self.newest).number
        self._resumed = _key(self.newest.name) if self.newest else None

    def _remove_leftovers(self) -> None:
        """Remove unfinished checkpoints and markers of older attempts."""
        for path in self.folder.iterdir():
            if path.name.startswith((ASIDE, _MARKER)) and 0 < _attempt_of(path.name) < self.number:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self, best: Best | None) -> None:
        """Remove all checkpoints of this and older attempts that are not kept.

        Checkpoints of older attempts that are newer than the resumed one are either damaged or written by a stale
        process. They are removed too, so that they do not count among those kept. A process that is stale itself leaves
        all this to the latest attempt, whose best may be among the checkpoints that both have in their past.
        """
        if self.is_stale:
            return
        found = {key: path for key, path in _checkpoints(self.folder).items() if key.attempt <= self.number}
        resumed = self._resumed or CheckpointKey(0, 0)
        lineage = {path: key for key, path in found.items() if key.attempt == self.number or key <= resumed}
        stay = set(list(lineage)[: self._kept.newest])
        if every := self._kept.every:
            stay.update(path for path, key in lineage.items() if key.step % every == 0)
        if self._kept.best:
            stay.update(filter(None, [_best(lineage, best)]))
        for path in set(found.values()) - stay:
            shutil.rmtree(path, ignore_errors=True)


def _best(folders: Collection[Path], best: Best | None) -> Path | None:
    """Return the best of a run's checkpoints, given the newest first, of which the newest says what is `best`.

    The best has the same step and loss. A stale process may have written another one of this step: it has another loss,
    or is as good. If the best could not be written, the last one that was the best before it is returned, if any.
    """
    for folder in folders:
        if best and (key := _key(folder.name)) and key.step == best.step:
            found = _best_when_written(folder)
            if found and found.loss == best.loss:
                return folder
    return next(filter(_best_when_written, folders), None)


def _best_when_written(folder: Path) -> Best | None:
    """Return the evaluation of a checkpoint if it was the best of its run when it was written, and can be read."""
    with suppress(CheckpointError):
        state = read_state(folder)
        return state.best if state.is_best else None
    return None


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


def attempt_of(checkpoint: Path) -> int:
    """Return the number of the attempt that wrote a checkpoint, 0 if the folder's name does not say."""
    return _attempt_of(checkpoint.name)


def _attempt_of(name: str) -> int:
    """Return the number of the attempt that an entry belongs to, 0 for any other entry."""
    match = _NAME.fullmatch(name)
    return int(match[2]) if match else 0


def find_checkpoint(path: Path, best: bool = False, say: Callable[[str], object] = lambda _: None) -> Checkpoint:
    """Return the newest whole checkpoint of the run in `path`, or its `best`; or the checkpoint in `path` itself.

    `say` gets a sentence about each newer checkpoint that is damaged. Raises `CheckpointError` if there is none, or if
    the one that is asked for is damaged.
    """
    if not (path / "checkpoints").is_dir():
        return open_checkpoint(path)
    store = CheckpointStore(path / "checkpoints")
    if best:
        return open_checkpoint(store.best())
    checkpoint, problems = store.newest()
    for problem in problems:
        say(problem)
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint yet: train longer")
    return checkpoint


def find_model(path: Path, best: bool = False, say: Callable[[str], object] = lambda _: None) -> Path:
    """Return the model folder for `path`: the newest or the `best` checkpoint of a run, or else `path` itself.

    `say` gets a sentence about each newer checkpoint that is damaged. Raises `CheckpointError` if there is no model.
    """
    if (path / "checkpoints").is_dir():
        return find_checkpoint(path, best, say).folder
    if best:
        raise CheckpointError(
            f"{path} is not the folder of a run, among whose checkpoints --best chooses: leave it out"
        )
    if not (path / "config.json").exists():
        raise CheckpointError(f"{path} is neither a run's folder nor a model's (it has no config.json)")
    return path
