"""Findings of the doctor: each is a line that says whether all is well, or what to do."""

from enum import StrEnum
from typing import NamedTuple

from rich.console import Console
from rich.text import Text


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Finding(NamedTuple):
    """A line of the report. If the level is not OK, `text` says what to do."""

    level: Level
    subject: str
    text: str


_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}


def print_finding(finding: Finding) -> None:
    """Print a finding as one line."""
    line = Text.assemble((f"{finding.level:8}", _COLOURS[finding.level]), f"{finding.subject:14} {finding.text}")
    Console(soft_wrap=True, highlight=False).print(line)


def ok_if(well: bool, subject: str, text: str, advice: str) -> Finding:
    """Return a finding that is OK if `well`, and otherwise a warning with `advice`."""
    return Finding(Level.OK, subject, text) if well else Finding(Level.WARNING, subject, f"{text}: {advice}")
