"""The attempts of a run: when, where, with what and on which corpora each start began, and how it ended.

`attempts.jsonl` in the run's folder gets a line when an attempt begins, and one when it ends. An attempt without an end
still runs, or was killed. Training never reads the file: reports do, also where corpora and checkpoints are not at
hand.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lucid.data import HELD_OUT, Corpus
from lucid.distributed.locations import LocationRow, location_rows
from lucid.files import append, open_text, reason_of
from lucid.json_values import parse_dataclass, parse_json
from lucid.training.corpora import corpus_names
from lucid.training.run_on_rank import Run

ATTEMPTS_FILE = "attempts.jsonl"
_PROCESSORS = Path("/proc/cpuinfo")
# Settings of `lucid prepare` that say what a text is.
_TOLD = "language", "normalisation", "tokenizer", "held_out", "drop_duplicates", "drop_repeated_lines"
# Characters of a message, and of a line: longer ones are cut, or damage.
_LONGEST_MESSAGE, _LONGEST_LINE = 2000, 1 << 22

Count = Annotated[int, Field(ge=0, lt=2**62)]
Seconds = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]


@dataclass(frozen=True)
class CorpusRecord:
    """What a corpus holds, and its `share` in the samples of the run.

    `tokens`, `sentences`, `words` and `unknown` ([UNK]) are those of the training split. `preparation` has some of the
    settings with which `lucid prepare` made it; its `tokenizer` is a digest if one was given.
    """

    name: str
    share: float
    identity: str
    documents: Count
    held_out_documents: Count
    sentences: Count
    tokens: Count
    words: Count
    unknown: Count
    vocab_size: Count
    preparation: dict[str, Any]

    @classmethod
    def of(cls, name: str, share: float, corpus: Corpus) -> "CorpusRecord":
        """Return the record of the training split of a corpus."""
        split = corpus.contents
        preparation = {key: corpus.made_from[key] for key in _TOLD if corpus.made_from.get(key) is not None}
        return cls(
            name=name,
            share=share,
            identity=corpus.identity,
            documents=split.documents,
            held_out_documents=corpus.documents_in(HELD_OUT),
            sentences=split.sentences,
            tokens=split.tokens,
            words=split.words,
            unknown=split.unknown,
            vocab_size=corpus.vocab_size,
            preparation=preparation,
        )


@dataclass(frozen=True)
class EndRecord:
    """How the attempt with a number ended, when (seconds since 1970, UTC), and after which `step` of the run.

    The `message` says why it failed.
    """

    ends: Count
    time: Seconds
    step: Count
    how: Literal["finished", "stopped", "failed"]
    message: str = ""


@dataclass(frozen=True)
class AttemptRecord:
    """An attempt: its `number`, when it `began` (seconds since 1970, UTC), and the `first_step` before its own steps.

    `hosts` has the host of each rank, `locations` the table of where the ranks ran. `processor` is the first rank's.
    `software` are the versions, `config` the settings. `end` is None while it runs, and if it was killed.
    """

    number: Count
    began: Seconds
    first_step: Count
    hosts: tuple[str, ...]
    locations: tuple[LocationRow, ...]
    processor: str
    software: dict[str, str]
    corpora: tuple[CorpusRecord, ...]
    config: dict[str, Any]
    end: EndRecord | None = None


def note_start(run: Run, say: Callable[[str], None]) -> None:
    """Note that this attempt of a run begins. On the first rank, once the attempt is claimed."""
    mixture = run.corpora.train
    names = corpus_names([sampler.corpus.folder for sampler in mixture.samplers])
    attempt = AttemptRecord(
        number=run.attempt,
        began=time.time(),
        first_step=run.step,
        hosts=tuple(run.hosts),
        locations=tuple(location_rows(run.locations)),
        processor=_processor(),
        software=run.software,
        corpora=tuple(
            CorpusRecord.of(name, float(share), sampler.corpus)
            for name, share, sampler in zip(names, mixture.shares, mixture.samplers, strict=True)
        ),
        config=run.config.as_dict(),
    )
    if problem := _append(run.config.run_folder, asdict(attempt)):
        say(f"{problem}; reports of this run will lack this start")


def note_end(run: Run, how: Literal["finished", "stopped", "failed"], message: str = "") -> None:
    """Note how this attempt of a run ended, if it has begun. Other ranks than the first note nothing."""
    if run.attempt:
        end = EndRecord(run.attempt, time.time(), run.step, how, message[:_LONGEST_MESSAGE])
        _append(run.config.run_folder, asdict(end))


@contextmanager
def failure_noted(run: Run) -> Iterator[None]:
    """Note the error that ends the block, if any."""
    try:
        yield
    except BaseException as error:
        note_end(run, "failed", str(error) or type(error).__name__)
        raise


def read_attempts(run_folder: Path) -> list[AttemptRecord]:
    """Return the attempts that a run has noted, in order; none if an earlier version of lucid trained it.

    Damaged lines are left out. Raises `OSError` if there is such a file, and it cannot be read.
    """
    path = run_folder / ATTEMPTS_FILE
    if not path.exists():
        return []
    attempts: list[AttemptRecord] = []
    with open_text(path, errors="replace") as file:
        while line := file.readline(_LONGEST_LINE):
            with suppress(ValueError):
                content = parse_json(line)
                if isinstance(content, dict):
                    kind: type[AttemptRecord] | type[EndRecord] = EndRecord if "ends" in content else AttemptRecord
                    _take(attempts, parse_dataclass(kind, line.encode()))
    return attempts


def _take(attempts: list[AttemptRecord], noted: AttemptRecord | EndRecord) -> None:
    """Add what a line says. A folder whose checkpoints were removed may have two attempts of a number."""
    if isinstance(noted, AttemptRecord):
        attempts.append(noted)
        return
    for place in reversed(range(len(attempts))):
        if attempts[place].number == noted.ends:
            attempts[place] = replace(attempts[place], end=noted)
            return


def _append(folder: Path, content: dict[str, Any]) -> str:
    """Append a line, and return what is wrong, "" if nothing is: a run goes on without it."""
    path = folder / ATTEMPTS_FILE
    try:
        append(path, _line_end_missing(path) + json.dumps(content).encode() + b"\n")
    except OSError as error:
        return f"{path} could not be written: {reason_of(error)}"
    return ""


def _line_end_missing(path: Path) -> bytes:
    """Return the line end that a file lacks whose last line was torn, by a power failure for one; else b""."""
    if not path.is_file() or path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return b"" if file.read() == b"\n" else b"\n"


def _processor() -> str:
    """Return the name of this host's processor, "" if the system does not say."""
    try:
        lines = _PROCESSORS.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
