"""`python -m fork_server`: runs `lucid` commands in forks of itself, so that none waits for imports.

It reads a `Command` in JSON from each line of standard input, and answers with a `Result` on standard output. It has
loaded the kernels, but has no threads and has computed nothing, so a fork is like a process that has just started.
"""

import atexit
import ctypes
import gc
import json
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from lucid.cli import main as lucid

# <linux/prctl.h>, <linux/capability.h>, <linux/sched.h>, <linux/mount.h>
_SET_CHILD_SUBREAPER, _DROP_FROM_BOUNDING_SET = 36, 24
_IGNORE_PERMISSIONS = (1, 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_CAPABILITY_VERSION_3 = 0x20080522
_NEW_MOUNTS, _RECURSIVE, _PRIVATE, _BIND, _REMOUNT, _READ_ONLY = 0x20000, 0x4000, 0x40000, 0x1000, 0x20, 0x1

_SECONDS_FOR_CHILDREN = 5.0


@dataclass(frozen=True)
class Command:
    """A command line, and the surroundings in which it runs."""

    arguments: list[str]
    folder: str
    environment: dict[str, str] = field(default_factory=dict)
    # The command is killed after as many seconds.
    seconds: float = 60
    # Bytes of address space, in addition to what the server uses; 0: no limit.
    memory: int = 0
    # Whether permission bits bind root, too.
    obeys_permissions: bool = False
    # Folders that lie on a read-only file system.
    read_only: list[str] = field(default_factory=list)
    # Folders that lie on a file system of as many bytes, which is empty.
    small: dict[str, int] = field(default_factory=dict)
    # Modules that are not installed.
    without: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int  # negative after a signal
    output: str
    errors: str
    timed_out: bool
    # Whether processes that it had started were still there.
    left_processes: bool
    processor_seconds: float


def main() -> None:
    """Serve until standard input ends."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    _libc().prctl(_SET_CHILD_SUBREAPER, 1)
    _import_commands()
    gc.freeze()  # forks do not look at the objects of this process, and so do not copy them
    for line in requests:
        command = Command(**json.loads(line))
        streams = [os.memfd_create(name) for name in ("output", "errors")]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = os.fork()
        if not child:
            _run(command, streams)
        timed_out = not _ends_within(child, command.seconds)
        if timed_out:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        left = _others_stay(child)
        output, errors = map(_content, streams)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
        result = Result(os.waitstatus_to_exitcode(status), output, errors, timed_out, left, seconds)
        print(json.dumps(asdict(result)), file=answers, flush=True)


def _import_commands() -> None:
    """Import what commands import when they run, so that no fork has to."""
    import numpy as np

    from lucid import kernels
    from lucid.cli.commands import COMMANDS, load

    for module in ("matplotlib.backends.backend_agg", "scipy.special", "lucid.cli.app", "lucid.training.trainer"):
        import_module(module)
    kernels.of(np.zeros(0, np.float32))
    for name in COMMANDS:
        if name != "launch":
            load(name)


def _run(command: Command, streams: list[int]) -> NoReturn:
    """Run `command` and leave as Python does, but without taking the interpreter down, which would take longer."""
    code: object = 1
    try:
        _surround(command, streams)
        lucid(command.arguments)
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):  # the command may have closed it
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def _surround(command: Command, streams: list[int]) -> None:
    os.setsid()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    os.environ |= command.environment
    sys.modules |= dict.fromkeys(command.without)  # type: ignore[arg-type]
    os.chdir(command.folder)
    if command.read_only or command.small:
        _own_file_systems(command)
    if command.obeys_permissions:
        _obey_permissions()
    if command.memory:
        most = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0]) + command.memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _own_file_systems(command: Command) -> None:
    """Leave the mounts of other processes, and make those of the command. Raises `OSError` if that is not permitted."""
    _checked(_libc().unshare, _NEW_MOUNTS)
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    for folder, size in command.small.items():
        _mount("tmpfs", folder, "tmpfs", 0, f"size={size}")
    for folder in command.read_only:
        _mount(folder, folder, None, _BIND)
        _mount(None, folder, None, _BIND | _REMOUNT | _READ_ONLY)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [text if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(_libc().mount, *encoded[:3], ctypes.c_ulong(flags), encoded[3])


def _obey_permissions() -> None:
    """Give up root's right to open all files, also for programs that this process runs."""
    if os.geteuid() != 0:
        return
    for capability in _IGNORE_PERMISSIONS:
        _checked(_libc().prctl, _DROP_FROM_BOUNDING_SET, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, twice: of the lower and the upper half
    _checked(_libc().capget, header, sets)
    for number in range(3):
        sets[number] &= ~sum(1 << capability for capability in _IGNORE_PERMISSIONS)
    _checked(_libc().capset, header, sets)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(function: Callable[..., int], *arguments: Any) -> None:
    if function(*arguments):
        raise OSError(ctypes.get_errno(), f"{function.__name__}: {os.strerror(ctypes.get_errno())}")


def _ends_within(process: int, seconds: float) -> bool:
    descriptor = os.pidfd_open(process)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _others_stay(group: int) -> bool:
    """Return whether processes that the command started do not end, and end them."""
    deadline, stay = time.monotonic() + _SECONDS_FOR_CHILDREN, False
    for process in _children():
        if not _ends_within(process, max(0.0, deadline - time.monotonic())):
            stay = True
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return stay


def _children() -> Iterator[int]:
    """Yield the children of this process, until there are none."""
    while True:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if not children:
            return
        yield int(children[0])


def _content(stream: int) -> str:
    os.lseek(stream, 0, os.SEEK_SET)
    with os.fdopen(stream, errors="replace") as file:
        return file.read()


if __name__ == "__main__":
    main()
