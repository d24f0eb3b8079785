"""All that the folder of a run says about it, collected once, for reports and for model cards.

Whatever is missing or damaged is left out, and named in a sentence: a run may still train, may be of an earlier
version, or may be a copy without its corpus.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from lucid.analysis.explained import explained
from lucid.analysis.logged_run import LoggedRun
from lucid.data import Corpus
from lucid.data.mixture import shares_of
from lucid.errors import DataError, LucidError
from lucid.files import reason_of
from lucid.training.attempts import ATTEMPTS_FILE, AttemptRecord, CorpusRecord, read_attempts
from lucid.training.checkpoints.checkpoint import TrainingState, read_state
from lucid.training.checkpoints.store import CheckpointStore, attempt_of
from lucid.training.config import RunConfig, from_dict
from lucid.training.corpora import corpus_names
from lucid.training.end import expected_end
from lucid.training.explanations.finding import Finding
from lucid.training.log.metrics import Entry, log_of

T = TypeVar("T")


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that is there: the number of its attempt, its step, its size in bytes, and whether it is the best.

    `loss` is the held-out loss, MLM + NSP, that the log has at its step.
    """

    folder: Path
    attempt: int
    step: int
    bytes: int
    loss: float | None
    is_best: bool


@dataclass(frozen=True)
class RunFacts:
    """What the folder of a run says. `remarks` are sentences about what is missing.

    `logged` has the log, the settings, and the state of the newest checkpoint.
    """

    logged: LoggedRun
    attempts: tuple[AttemptRecord, ...] = ()
    checkpoints: tuple[KeptCheckpoint, ...] = ()
    corpora: tuple[CorpusRecord, ...] = ()
    findings: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> "RunFacts":
        """Return the facts of the run in `folder`. Raises `DataError` if it is not the folder of a run."""
        if not any((folder / name).exists() for name in ("metrics.jsonl", ATTEMPTS_FILE, "checkpoints")):
            log_of(folder)  # says what is wrong with the folder
        remarks: list[str] = []
        attempts = tuple(_known(lambda: read_attempts(folder), remarks) or ())
        logged = _known(lambda: LoggedRun.of(folder), remarks) or _without_log(folder, attempts)
        if not attempts:
            remarks.append(f"{folder} has no {ATTEMPTS_FILE}, in which later versions of lucid note starts and ends")
        if logged.config is None:
            remarks.append(f"the settings of {folder} are not known: it has no checkpoint that this version can read")
        findings: list[Finding] = []
        if logged.entries:
            found = _known(lambda: explained(folder), remarks)
            findings = found.findings if found else []
            remarks += found.remarks if found else []
        corpora = attempts[-1].corpora if attempts else _known(lambda: _corpora(logged.config), remarks) or ()
        checkpoints = _known(lambda: _checkpoints(folder, logged, remarks), remarks) or ()
        return cls(logged, attempts, checkpoints, corpora, tuple(findings), tuple(dict.fromkeys(remarks)))

    @classmethod
    def of_checkpoint(cls, folder: Path) -> "RunFacts":
        """Return the facts of a run up to the checkpoint in `folder`, which may be a copy alone.

        Raises `CheckpointError` if the checkpoint cannot be read.
        """
        state, run = read_state(folder), folder.absolute().parent.parent
        remarks: list[str] = []
        entries: list[Entry] = []
        attempts: list[AttemptRecord] = []
        if folder.absolute().parent.name == "checkpoints":
            entries = [entry for entry in _known(lambda: log_of(run), remarks) or [] if entry["step"] <= state.step]
            noted = _known(lambda: read_attempts(run), remarks) or []
            attempts = [attempt for attempt in noted if attempt.number <= attempt_of(folder)]
        config = _known(lambda: from_dict(state.config), remarks)
        ranks = len(attempts[-1].hosts) if attempts else state.ranks
        logged = LoggedRun(run, entries, config, ranks, state)
        corpora = attempts[-1].corpora if attempts else _known(lambda: _corpora(logged.config), remarks) or ()
        return cls(logged, tuple(attempts), corpora=corpora, remarks=tuple(remarks))

    @property
    def folder(self) -> Path:
        return self.logged.folder

    @property
    def state(self) -> TrainingState | None:
        return self.logged.state

    @cached_property
    def step(self) -> int:
        """The last step that is known."""
        ends = [attempt.end.step for attempt in self.attempts[-1:] if attempt.end]
        steps = [entry["step"] for entry in self.logged.entries]
        return max([*steps, *ends, self.state.step if self.state else 0])

    @property
    def has_finished(self) -> bool | None:
        """Whether the run has ended by itself; None if that is not known."""
        if self.attempts:
            end = self.attempts[-1].end
            return end is not None and end.how == "finished"
        if self.config is None or self.state is None:
            return None
        return expected_end(self.config, self.step, self.state.training_seconds, self.state.best) <= self.step

    @property
    def config(self) -> RunConfig | None:
        """The settings, None if they are not known."""
        return self.logged.config

    @property
    def ranks(self) -> int | None:
        """The number of ranks, None if it is not known."""
        return self.logged.ranks

    @property
    def software(self) -> dict[str, str]:
        """The versions that the last attempt ran."""
        return self.attempts[-1].software if self.attempts else self.state.software if self.state else {}

    def last(self, key: str) -> float | None:
        """Return the last value of a key of the log, None if there is none."""
        values = self.logged.points(key)[1]
        return float(values[-1]) if len(values) else None


def _known(read: Callable[[], T], remarks: list[str]) -> T | None:
    """Return what can be read, or else None, and add to the remarks why."""
    try:
        return read()
    except LucidError as error:
        remarks.append(str(error))
    except OSError as error:
        remarks.append(f"{error.filename} cannot be read: {reason_of(error)}")
    return None


def _without_log(folder: Path, attempts: Sequence[AttemptRecord]) -> LoggedRun:
    """Return the run in a folder whose log cannot be read."""
    state = _known(lambda: CheckpointStore(folder / "checkpoints").newest_state(), [])
    settings = attempts[-1].config if attempts else state.config if state else None
    config = _known(lambda: from_dict(settings), []) if settings is not None else None
    ranks = len(attempts[-1].hosts) if attempts else state.ranks if state else None
    return LoggedRun(folder, [], config, ranks, state)


def _corpora(config: RunConfig | None) -> tuple[CorpusRecord, ...]:
    """Return the records of the corpora of a run that has not noted them. Raises `DataError` if one is not there."""
    if config is None:
        return ()
    folders = config.data.folders
    shares = shares_of([corpus.weight for corpus in config.data.corpora])
    try:
        return tuple(
            CorpusRecord.of(name, float(share), Corpus.open(folder))
            for name, share, folder in zip(corpus_names(folders), shares, folders, strict=True)
        )
    except DataError as error:
        raise DataError(f"what the corpora held is not known: {error}") from error


def _checkpoints(folder: Path, logged: LoggedRun, remarks: list[str]) -> tuple[KeptCheckpoint, ...]:
    """Return the checkpoints of a run that can be read, the oldest first; each problem becomes a remark.

    A checkpoint that the run removes meanwhile is left out.
    """
    store = CheckpointStore(folder / "checkpoints")
    states, problems = store.states()
    remarks += [f"a checkpoint is damaged: {problem}" for problem in problems]
    best = _known(store.best, []) if logged.state is not None and logged.state.best is not None else None
    losses = held_out_losses(logged)
    kept = []
    for path, state in reversed(states.items()):
        with suppress(OSError):
            size = _size(path)
            kept.append(KeptCheckpoint(path, attempt_of(path), state.step, size, losses.get(state.step), path == best))
    return tuple(kept)


def held_out_losses(logged: LoggedRun) -> dict[int, float]:
    """Return the held-out loss, MLM + NSP, by step."""
    mlm, nsp = (
        dict(zip(*(values.tolist() for values in logged.points(f"held_out_{name}_loss")), strict=True))
        for name in ("mlm", "nsp")
    )
    return {int(step): loss + nsp.get(step, 0.0) for step, loss in mlm.items()}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
