"""What a preparation is going to do: which pieces of which files it reads, put together into portions.

The plan is written down before the work begins. What is done belongs to it: the same plan goes on with it, and another
one starts from nothing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lucid.data.manifest import FORMAT_VERSION
from lucid.errors import DataError
from lucid.files import parse_json, written_aside
from lucid.preparation.documents import Piece
from lucid.preparation.parts import Dropped, Portion, TextSettings
from lucid.preparation.sources import Source, scan

# Where the work lies until it is finished, within the folder of the corpus.
UNFINISHED = "unfinished"
# Files read at once: reading and hashing leave Python to other threads.
_READERS = 4


@dataclass(frozen=True)
class Plan:
    """`made_from` is that of the manifest; `conditions` is what the work under way depends on, beside the sources."""

    made_from: Mapping[str, Any]
    conditions: Mapping[str, Any]
    sources: tuple[Source, ...]
    portions: tuple[Portion, ...]
    dropped: Dropped

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        number_of = {source: number for number, source in enumerate(self.sources)}
        portions = [
            [[number_of[piece.source], piece.start, piece.stop, piece.line, piece.size] for piece in portion.pieces]
            for portion in self.portions
        ]
        content = {
            "made_from": self.made_from,
            "conditions": self.conditions,
            "sources": [asdict(source) for source in self.sources],
            "portions": portions,
            "dropped": self.dropped.counts,
            "lines": self.dropped.lines,
        }
        with written_aside(path, DataError) as file:
            file.write(json.dumps(content).encode())

    @classmethod
    def read(cls, path: Path) -> "Plan | None":
        """Return the plan that was written; None if there is none that can be read."""
        try:
            content = parse_json(path.read_bytes())
            sources = tuple(Source(**source) for source in content["sources"])
            pieces = ([Piece(sources[number], *rest) for number, *rest in portion] for portion in content["portions"])
            portions = tuple(Portion(number, tuple(portion)) for number, portion in enumerate(pieces))
            dropped = Dropped()
            dropped.counts.update(content["dropped"])
            dropped.lines = content["lines"]
            return cls(content["made_from"], content["conditions"], sources, portions, dropped)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None


def make_plan(
    sources: list[Source],
    settings: TextSettings,
    made_from: Mapping[str, Any],
    piece_bytes: int,
    done: Callable[[int], None],
) -> Plan:
    """Read all sources once, and plan portions of `piece_bytes` bytes or a little more.

    `done` is told of the bytes of the files, as they are read.
    """
    dropped = Dropped()
    reader = settings.reader(dropped)
    inputs, pieces = [], []
    with ThreadPoolExecutor(_READERS) as threads:
        scans = threads.map(
            lambda source: scan(source, piece_bytes, settings.text_field, settings.whole_files), sources
        )
        for source, found in zip(sources, scans, strict=True):
            inputs.append({"name": source.name, "bytes": source.size or found.content_bytes, "sha256": found.sha256})
            pieces += reader.pieces(source, found)
            done(source.size)
    return Plan(
        {"inputs": inputs, **made_from},
        conditions(settings, piece_bytes),
        tuple(sources),
        tuple(_portions(pieces, piece_bytes)),
        dropped,
    )


def conditions(settings: TextSettings, piece_bytes: int) -> dict[str, Any]:
    """Return what the plan and the work under way depend on, beside the sources."""
    return {"format_version": FORMAT_VERSION, "piece_bytes": piece_bytes, **asdict(settings)}


def _portions(pieces: Iterable[Piece], piece_bytes: int) -> Iterator[Portion]:
    """Put small pieces together."""
    number, waiting = 0, []
    size = 0
    for piece in pieces:
        waiting.append(piece)
        size += piece.size
        if size >= piece_bytes:
            yield Portion(number, tuple(waiting))
            number, waiting, size = number + 1, [], 0
    if waiting:
        yield Portion(number, tuple(waiting))
