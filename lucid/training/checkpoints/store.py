"""The checkpoints of one run: `checkpoints/<incarnation>-<step>/`, such as `0003-00001000`.

Each start of a run is a new incarnation, with a number of its own. The newest checkpoint is that of the latest
incarnation, and of its latest step. So what an older incarnation goes on to write (a scheduler started the run again,
while a rank that it had lost touch with lived on) neither replaces nor hides anything newer, and no lock is needed.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from lucid.errors import CheckpointError
from lucid.training.checkpoints.checkpoint import ASIDE, Checkpoint, Snapshot, open_checkpoint, write_checkpoint

# An empty folder of this name, ahead of the number, claims an incarnation.
_MARKER = ".incarnation-"
_NAME = re.compile(rf"({re.escape(ASIDE)}|{re.escape(_MARKER)})?(\d{{4,}})(?:-(\d{{8,}}))?")

# (incarnation, step): the order of checkpoints.
Place = tuple[int, int]


class CheckpointStore:
    """All checkpoints in a folder: which is the newest whole one, and the claim to write further ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has_any(self) -> bool:
        """Return whether there is a checkpoint, be it whole or not."""
        return bool(_checkpoints(self.folder))

    def newest(self) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint, if any, and what was wrong with newer ones that were passed over.

        Raises `CheckpointError` if there are checkpoints and none of them is whole: nobody wants to start over then.
        """
        problems: list[str] = []
        for folder in _checkpoints(self.folder).values():
            try:
                return open_checkpoint(folder), problems
            except CheckpointError as error:
                problems.append(str(error))
        if problems:
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be used ({problems[0]}): mend it, or move the folder away to "
                "begin anew"
            )
        return None, problems

    def claim(self, keep: int, resumed: Path | None) -> "Incarnation":
        """Return a new incarnation, which goes on from `resumed` and keeps the newest `keep` checkpoints.

        No two starts get the same number: making a folder succeeds once, on shared file systems as well. Raises
        `CheckpointError` if it cannot be made.
        """
        number = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while True:
                number = max(number, _latest_incarnation(self.folder)) + 1
                try:
                    (self.folder / f"{_MARKER}{number:04d}").mkdir()
                except FileExistsError:
                    continue
                # Later starts may have taken this number and more, and swept its marker away, since we looked.
                if _latest_incarnation(self.folder) == number:
                    return Incarnation(self.folder, number, keep, resumed)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder} cannot be written ({error.strerror or error}): choose another run_folder, or mend it"
            ) from error


class Incarnation:
    """One start of a run, which writes checkpoints under its number; `newest` is the newest whole one it knows of."""

    def __init__(self, folder: Path, number: int, keep: int, resumed: Path | None) -> None:
        self.folder = folder
        self.number = number
        self.newest = resumed
        self._keep = keep
        self._resumed = _place(resumed.name) if resumed else None

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and remove the oldest ones.

        Raises `CheckpointError` if it cannot be written; the ones before are untouched then.
        """
        target = self.folder / f"{self.number:04d}-{snapshot.state.step:08d}"
        try:
            # Before writing: what a killed writer left may be what fills the disk.
            self._remove_remains()
            write_checkpoint(target, snapshot)
        except OSError as error:
            before = f"the newest whole one is {self.newest}" if self.newest else "there is none before it"
            raise CheckpointError(
                f"checkpoint {target} could not be written: {error.strerror or error}; {before}"
            ) from error
        self.newest = target
        self._remove_old()

    def _remove_remains(self) -> None:
        """Remove what older incarnations left unfinished, and their markers."""
        for path in self.folder.iterdir():
            if path.name.startswith((ASIDE, _MARKER)) and 0 < _incarnation(path.name) < self.number:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self) -> None:
        """Remove what is past keeping, of this incarnation and older ones.

        What older ones have beyond the checkpoint that this one went on from was found damaged, or an orphan wrote it
        since: it is removed rather than kept in a whole one's place.
        """
        ours = {place: path for place, path in _checkpoints(self.folder).items() if place[0] <= self.number}
        resumed = self._resumed or (0, 0)
        lineage = [path for place, path in ours.items() if place[0] == self.number or place <= resumed]
        for path in set(ours.values()) - set(lineage[: self._keep]):
            shutil.rmtree(path, ignore_errors=True)


def _checkpoints(folder: Path) -> dict[Place, Path]:
    """Return the checkpoints in `folder`, whole or not, newest first."""
    found = {place: path for path in _entries(folder) if (place := _place(path.name))}
    return dict(sorted(found.items(), reverse=True))


def _latest_incarnation(folder: Path) -> int:
    return max((_incarnation(path.name) for path in _entries(folder)), default=0)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _place(name: str) -> Place | None:
    match = _NAME.fullmatch(name)
    return (int(match[2]), int(match[3])) if match and match[3] and not match[1] else None


def _incarnation(name: str) -> int:
    """Return the number of the incarnation that an entry belongs to, 0 for one that is none of ours."""
    match = _NAME.fullmatch(name)
    return int(match[2]) if match else 0


def find_checkpoint(path: Path) -> Checkpoint:
    """Return the newest whole checkpoint of the run in `path`, or the checkpoint that `path` is itself.

    Raises `CheckpointError` if there is none, or it is not whole.
    """
    if not (path / "checkpoints").is_dir():
        return open_checkpoint(path)
    checkpoint, _ = CheckpointStore(path / "checkpoints").newest()
    if checkpoint is None:
        raise CheckpointError(f"{path} has no checkpoint yet: train longer")
    return checkpoint


def find_model(path: Path) -> Path:
    """Return the model folder that `path` means: a run's newest checkpoint, or the folder itself.

    Raises `CheckpointError` if there is no model.
    """
    if (path / "checkpoints").is_dir():
        return find_checkpoint(path).folder
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} is neither the folder of a run nor that of a model (it has no config.json)")
    return path
