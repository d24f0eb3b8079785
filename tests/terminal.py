"""A terminal for tests: a process in it gets Ctrl-C and the end of the terminal as a user's process does."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time
from contextlib import suppress
from typing import Self

import pytest

CTRL_C = b"\x03"
_SECONDS = 60


class Terminal:
    """A command in the foreground of a pseudo-terminal. `output` is what it has printed so far."""

    def __init__(self, *command: str, **variables: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.output = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.close()

    def read_until(self, fragment: str) -> None:
        """Wait until it has printed `fragment`."""
        while fragment not in self.output:
            if not self._read():
                pytest.fail(f"it ended without {fragment!r}:\n{self.output}")

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def close(self) -> None:
        """Close the terminal, as a window or a connection closes."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def wait(self) -> int:
        """Wait for its end, and return its exit code."""
        while self._ours >= 0 and self._read():
            pass
        return self.process.wait(_SECONDS)

    def _read(self) -> bool:
        """Wait for more output; return whether there was some."""
        deadline = time.monotonic() + _SECONDS
        while not select.select([self._ours], [], [], 0.1)[0]:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                pytest.fail(f"nothing more in {_SECONDS} s:\n{self.output}")
        with suppress(OSError):  # the last process has closed its side
            read = os.read(self._ours, 65536)
            self.output += read.decode(errors="replace").replace("\r\n", "\n")
            return bool(read)
        return False
