"""Sends what is new in the log of a run to a tracking service, and remembers in the run's folder what it has.

The lines of an attempt only ever grow, and a new attempt, which may take steps again, has a new number. So the
newest attempt of which a service has a line, and the number of its lines, say what it has. Numbers start again only if
the run's checkpoints were removed and it began anew; its log then belongs in a new run of the service.
"""

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lucid.analysis.logged_run import LoggedRun
from lucid.analysis.tracking.services import How, Service, ServiceError
from lucid.errors import CheckpointError, ConfigError
from lucid.files import lock, read_bytes, reason_of, written_aside
from lucid.json_values import parse_dataclass
from lucid.training.attempts import read_attempts
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import from_dict
from lucid.training.config.effects import by_dotted_key
from lucid.training.formatting import count
from lucid.training.log.metrics import Entry

SENT_FILE = "sent-{}.json"
# Lines after which it is noted that they were sent.
_LINES = 200

Count = Annotated[int, Field(ge=0, lt=2**62)]


@dataclass(frozen=True)
class Sent:
    """What a service has of a run, in its `run` of a `project`.

    That is all lines of attempts before `attempt`, and `lines` of this one; the last of them is of `step`. `configured`
    is the attempt whose settings it has, and `how` what it knows of the end.
    """

    project: str
    run: str
    attempt: Count = 0
    lines: Count = 0
    step: Count = 0
    configured: Count = 0
    how: How | None = None

    def after(self, entry: Entry) -> "Sent":
        """Return the same with one more line."""
        attempt = _attempt_of(entry)
        lines = self.lines + 1 if attempt == self.attempt else 1
        return replace(self, attempt=attempt, lines=lines, step=entry["step"])

    def without(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return the lines that the service does not have."""
        present = [entry for entry in entries if _attempt_of(entry) == self.attempt]
        return present[self.lines :] + [entry for entry in entries if _attempt_of(entry) > self.attempt]


def _attempt_of(entry: Entry) -> int:
    return int(entry.get("attempt") or 0)


class Sender:
    """Sends the log of the run in `folder` to a service, into a run `name` of a `project`. `say` prints a sentence."""

    def __init__(self, folder: Path, service: Service, to: str, project: str, name: str, say: Callable[[str], None]):
        self._folder, self._service, self._project, self._name, self._say = folder, service, project, name, say
        self._path = folder / SENT_FILE.format(to)
        self._to, self._is_open = to, False
        self._how: How | None = None
        self._sent = self._read()

    def _read(self) -> Sent | None:
        """Return what was sent before. Raises `ConfigError` if it is damaged: all would be sent once more."""
        try:
            sent = parse_dataclass(Sent, read_bytes(self._path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self._path}, which says what was sent, cannot be read: {reason_of(error)}; remove it to send the "
                "whole log into a new run"
            ) from error
        if sent.project != self._project:
            raise ConfigError(
                f"this run was sent to the project {sent.project} before: give that (--project), or remove "
                f"{self._path} to send the whole log into a new one"
            )
        return sent

    def send_new(self) -> tuple[int, How | None]:
        """Send what is new. Return the number of lines, and how the newest attempt has ended.

        That is None if it has not, or if nothing says so. Raises `ServiceError`; what was sent until then is noted.
        Raises `ConfigError` if the run has begun anew since.
        """
        self._how = how = _end_of(self._folder)  # before the log, which is whole once an end is noted
        run = LoggedRun.of(self._folder)
        self._check_that_it_went_on(run.entries)
        new = run.entries if self._sent is None else self._sent.without(run.entries)
        if new or (self._sent is not None and self._sent.how != how):
            sent = self._open()
            self._remark(sent, new)
            attempt = max(map(_attempt_of, run.entries), default=0)
            if run.config is not None and sent.configured != max(1, attempt):
                self._service.configure(by_dotted_key(run.config.as_dict()), attempt)
                sent = self._note(replace(sent, configured=max(1, attempt)))
            for start in range(0, len(new), _LINES):
                sent = self._send(sent, new[start : start + _LINES])
        return len(new), how

    def _send(self, sent: Sent, lines: Sequence[Entry]) -> Sent:
        """Send lines, and note those that the service has taken, also if it fails before it has taken all."""
        left = iter(lines)
        try:
            for number in self._service.send(lines):
                for entry in islice(left, number):
                    sent = sent.after(entry)
        finally:
            self._note(sent)
        return sent

    def _check_that_it_went_on(self, entries: Sequence[Entry]) -> None:
        """Raise `ConfigError` if the newest attempt is older than what was sent: none of its lines would count as new.

        The log alone does not tell: a run that goes back to a checkpoint drops the lines of the attempts after it.
        """
        known = {_attempt_of(entry) for entry in entries}
        with suppress(OSError):
            known |= {attempt.number for attempt in read_attempts(self._folder)[-1:]}
        if self._sent is not None and known and max(known) < self._sent.attempt:
            raise ConfigError(
                f"{self._path} says that attempt {self._sent.attempt} was sent, but the run has begun anew and is at "
                f"attempt {max(known)}; remove it to send the whole log into a new run"
            )

    def _open(self) -> Sent:
        if self._sent is None or not self._is_open:
            known = None if self._sent is None else self._sent.run
            run = self._service.open(self._folder.resolve(), self._project, self._name, known)
            self._is_open = True
            if self._sent is None:
                self._note(Sent(self._project, run))
        assert self._sent is not None
        return self._sent

    def _note(self, sent: Sent) -> Sent:
        with written_aside(self._path, ConfigError) as file:
            file.write(json.dumps(asdict(sent)).encode() + b"\n")
        self._sent = sent
        return sent

    def _remark(self, sent: Sent, new: Sequence[Entry]) -> None:
        """Say that steps come once more, if the run went back to a checkpoint."""
        if new and _attempt_of(new[0]) > sent.attempt and sent.lines and new[0]["step"] <= sent.step:
            self._say(
                f"attempt {_attempt_of(new[0])} has taken steps up to {sent.step:,} again: {self._to} has their lines "
                "twice, and the later ones count"
            )

    def close(self) -> None:
        """Close the service's run, if it is open, and tell it how the run has ended."""
        if self._is_open:
            self._is_open = False
            self._service.close(self._how)
            if self._sent is not None:
                self._note(replace(self._sent, how=self._how))


def _end_of(folder: Path) -> How | None:
    """Return how the newest attempt of a run has ended, None if it has not or nothing says so."""
    with suppress(OSError, CheckpointError, ConfigError):
        if attempts := read_attempts(folder):
            end = attempts[-1].end
            return None if end is None else end.how
        # An earlier version of lucid trained, which noted no attempts.
        state = CheckpointStore(folder / "checkpoints").newest_state()
        if state is not None and state.step >= from_dict(state.config).train.steps:
            return "finished"
    return None


@contextmanager
def sending(sender: Sender, folder: Path) -> Iterator[Sender]:
    """Close the sender after the block. No other process sends this run meanwhile."""
    try:
        held = lock(folder / ".sending", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(f"another process sends the log of {folder} already") from error
    try:
        yield sender
        sender.close()
    except BaseException:
        with suppress(ServiceError):
            sender.close()
        raise
    finally:
        if held is not None:
            held.close()


def follow(sender: Sender, pause: Callable[[], None], say: Callable[[str], None]) -> None:
    """Send what is new, again and again, with a `pause` in between, until the run has finished.

    A run that was stopped or has failed may go on. A service that cannot be reached is tried again.
    """
    said = ""
    while True:
        try:
            lines, how = sender.send_new()
            sentence = f"the run has {'been stopped' if how == 'stopped' else 'failed'}: waiting for it to go on"
            sentence = "" if how is None else sentence
        except ServiceError as error:
            lines, how, sentence = 0, None, f"{error}; trying again"
            with suppress(ServiceError):
                sender.close()
        if lines:
            say(f"{count(lines, 'line')} sent")
        if how == "finished":
            return
        if sentence and sentence != said:
            say(sentence)
        said = sentence
        pause()
