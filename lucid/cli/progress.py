"""The progress of commands that read text."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class _Bar:
    """Shows the reported stage and its progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self.stage = progress, "starting"
        self._task = progress.add_task(self.stage, total=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.stage = stage
            self._progress.reset(self._task, description=stage, total=total or None)
        self._progress.update(self._task, completed=done)

    def warn(self, sentence: str) -> None:
        """Print a warning, above the progress."""
        self._progress.console.print(f"warning: {sentence}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar() -> Iterator[_Bar]:
    """Show progress on standard error for the length of the block."""
    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield _Bar(progress)
