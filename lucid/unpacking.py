"""Unpacks compressed files, ends every line in the same way, and hashes what is read."""

import bz2
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from lucid.files import open_file, split_packing

# The errors of reading a file that is damaged or gone.
READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, lzma.LZMAError)
# Bytes that are held of a file.
_AT_ONCE = 1 << 17
# Compressed bytes that are unpacked at once: 1 KiB of zstandard unpacks to 32 MiB at most.
_STEP = 1 << 10
# Bytes of memory for each file that is read: the default limit of the zstd command; xz -9 takes half of it.
_WINDOW = 1 << 27
# Not before a line feed, even if another program has doubled it.
_RETURN_ALONE = re.compile(rb"\r(?!\r?\n)")


def unpacked(file: BinaryIO, packing: str) -> BinaryIO:
    """Return the content of an open file, packed in one of `PACKINGS` or "", in which a line feed ends each line."""
    return io.BufferedReader(_LineFeeds(_content(file, packing)), _AT_ONCE)


@contextmanager
def opened_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file, and unpack its content if its name ends in one of `PACKINGS`.

    Raises `OSError` as `open_file` does; to read it may raise any of `READ_ERRORS`.
    """
    with open_file(path) as file:
        yield _content(file, split_packing(path)[1])


def _content(file: BinaryIO, packing: str) -> BinaryIO:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    return io.BufferedReader(_Frames(file, _FRAMES[packing]), _AT_ONCE) if packing else file


class _LineFeeds(io.RawIOBase):
    """Content in which a carriage return alone has become a line feed. Every byte stays at its place."""

    def __init__(self, content: BinaryIO) -> None:
        self._content, self._waiting = content, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._content.tell() - len(self._waiting)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to byte `offset` of the content, always counted from the start."""
        self._waiting = b""
        return self._content.seek(offset)

    def readinto(self, buffer: Any) -> int:
        # Whether a carriage return ends a line is known from the next two bytes, which wait for the next call.
        block = self._waiting + self._content.read(len(buffer) + 2 - len(self._waiting))
        count = min(len(buffer), len(block))
        self._waiting = block[count:]
        buffer[:count] = (_RETURN_ALONE.sub(b"\n", block) if b"\r" in block else block)[:count]
        return count


class Digested(io.RawIOBase):
    """A file that computes its SHA-256 while it is read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        self.digest.update(found)
        return len(found)


class _Frames(io.RawIOBase):
    """The content of the frames of a packed file, one after another.

    Unlike the libraries' readers it notices a zstandard file that was cut short, and limits the memory for xz.
    """

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any]) -> None:
        self._file, self._new_frame = file, new_frame
        self._start()

    def _start(self) -> None:
        self._frame: Any = None
        self._packed, self._found, self._offset = b"", memoryview(b""), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to byte `offset` of the content (always counted from the start), or to its end if that comes first."""
        if offset < self._offset:
            self._file.seek(0)
            self._start()
        while self._offset < offset and self.read(min(offset - self._offset, 1 << 20)):
            pass
        return self._offset

    def readinto(self, buffer: Any) -> int:
        while not self._found:
            if self._frame is None or getattr(self._frame, "needs_input", True):
                self._packed = self._packed or self._file.read(_STEP)
                if not self._packed:
                    if self._frame is not None:
                        raise EOFError("the file ends in the middle of a frame")
                    return 0
            if self._frame is None:
                # Files of xz may be padded with zeros.
                self._packed = self._packed.lstrip(b"\0")
                self._frame = self._new_frame() if self._packed else None
                continue
            self._found, self._packed = memoryview(_next(self._frame, self._packed)), b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._found))
        buffer[:count], self._found = self._found[:count], self._found[count:]
        self._offset += count
        return count


_FRAMES: dict[str, Callable[[], Any]] = {
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj(),
    ".xz": lambda: lzma.LZMADecompressor(memlimit=_WINDOW),
    ".bz2": bz2.BZ2Decompressor,
}


def _next(frame: Any, packed: bytes) -> bytes:
    """Return more of the content of a frame. Raises `EOFError` if it takes too much memory."""
    is_zstandard = not hasattr(frame, "needs_input")
    try:
        found: bytes = frame.decompress(packed) if is_zstandard else frame.decompress(packed, _AT_ONCE)
        return found
    except (zstandard.ZstdError, lzma.LZMAError) as error:
        if "too much memory" not in str(error) and "limit exceeded" not in str(error):
            raise
        advice = "zstd -d --long=31 -c OLD | zstd -o NEW" if is_zstandard else "xz -dc OLD | xz -9 > NEW"
        limit = f"unpacking it takes more than {_WINDOW >> 20} MiB of memory"
        raise EOFError(f"{limit}; pack it again: {advice}") from error
