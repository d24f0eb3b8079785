"""Standard output and error that never fail a command.

A run takes days, and what it prints is only words. It must not end because its terminal has gone, `head` has read
enough, the disk of its log is full, or the encoding of the output lacks a character.
"""

import codecs
import io
import os
import select
import shutil
import sys
from contextlib import suppress
from typing import Any

_ERRORS = "lucid.printable"


def set_up() -> None:
    """Let `sys.stdout` and `sys.stderr` print every text, a line at a time, and drop what cannot be written.

    Each line is written at once and in one piece, because other ranks may write to the same log. A character that the
    encoding lacks is escaped (`\\xfc`); bytes of file names that are not UTF-8 stay these bytes.
    """
    # A file that takes the number of a closed standard output would be written to by all that print to descriptor 1.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    codecs.register_error(_ERRORS, _printable)
    sys.stdout, sys.stderr = _tolerant(sys.stdout, 1), _tolerant(sys.stderr, 2)


def lost() -> OSError | None:
    """Return the first error by which standard output lost something that was printed, or None."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "lost", None)


def table_width() -> int:
    """Return the width for a table: the terminal's, but 80 at least, since a narrower table leaves cells out."""
    return max(80, shutil.get_terminal_size().columns)


def copy(source: int, target: int) -> None:
    """Copy all from descriptor `source` to descriptor `target`, and drop what cannot be written."""
    sink = _Sink(target, "wb", closefd=False)
    while data := os.read(source, io.DEFAULT_BUFFER_SIZE):
        rest = memoryview(data)
        while rest:
            rest = rest[sink.write(rest) :]


class _Sink(io.FileIO):
    """A descriptor to which writing never fails. `lost` is the first error that it would have been."""

    lost: OSError | None = None

    def write(self, data: "memoryview | bytes") -> int:  # type: ignore[override]
        try:
            while (written := super().write(data)) is None:  # another program has made the terminal non-blocking
                select.select([], [self], [])
        except OSError as error:
            self.lost = self.lost or error
            return len(data)
        return written


def _tolerant(stream: object, descriptor: int) -> io.TextIOWrapper:
    """Return a stream to where `stream` writes; to `descriptor`, if Python found that closed, so that it is None."""
    if isinstance(stream, io.TextIOWrapper):
        with suppress(OSError):
            stream.flush()
        raw = getattr(stream.buffer, "raw", stream.buffer)  # with PYTHONUNBUFFERED there is no buffer
        if not isinstance(raw, io.FileIO):  # a buffer in memory, as in tests
            stream.reconfigure(errors=_ERRORS, line_buffering=True, write_through=False)
            return stream
        descriptor = raw.fileno()
    encoding = getattr(stream, "encoding", "utf-8")
    buffer: Any = io.BufferedWriter(_Sink(descriptor, "wb", closefd=False))
    return io.TextIOWrapper(buffer, encoding=encoding, errors=_ERRORS, line_buffering=True)


def _printable(error: UnicodeError) -> tuple[bytes, int]:
    """Return the bytes of a file name as they were (`os.fsdecode` makes surrogates of them), and escape the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    pieces = (
        bytes((ord(letter) - 0xDC00,)) if "\udc80" <= letter <= "\udcff" else letter.encode("ascii", "backslashreplace")
        for letter in letters
    )
    return b"".join(pieces), error.end
