"""What a task raises in a process of its own reaches the command as it would from this process."""

import errno
from pathlib import Path

import pytest

from lucid.errors import CheckpointError, DataError
from lucid.preparation.processes import Task, run_tasks


def fail(error: Exception, output: Path) -> None:
    raise error


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    "error",
    [DataError("no text"), CheckpointError("damaged"), MemoryError(), OSError(errno.ENOSPC, "No space", "out")],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_a_sentence_explains_keeps_its_class(error: Exception, processes: int) -> None:
    with pytest.raises(type(error)) as raised:
        list(run_tasks(fail, [Task(error, Path("out"), 1)] * 2, processes))
    assert str(raised.value) == str(error)


def test_any_other_error_has_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"in fail\n.*\nZeroDivisionError: by nothing"):
        list(run_tasks(fail, [Task(ZeroDivisionError("by nothing"), Path("out"), 1)] * 2, 2))
