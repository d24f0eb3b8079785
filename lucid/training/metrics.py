"""What a run reports: sums over the steps since the last line, JSON lines, TensorBoard events, and the line people see.

Only the first rank writes and prints; all ranks add up.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lucid.distributed import Communicator
from lucid.errors import ConfigError, TrainingError
from lucid.files import parse_json, written_aside

METRICS_FILE = "metrics.jsonl"

# Loss, correct predictions and labels of MLM, then of NSP.
WindowSums = tuple[float, float, float, float, float, float]

_SECONDS_PER_REFRESH = 0.2
# A loss beyond this, far above single precision, is damage.
_LARGEST_FIGURE = 1e100


class Window:
    """Sums over the steps since the last line of the log, on this rank until `totals` or `means` adds up all.

    `carried` are the sums that a run goes on with, such as `totals` gave: on one rank, and zeros on the others. `steps`
    counts those that this process took.
    """

    def __init__(self, communicator: Communicator, carried: WindowSums) -> None:
        self._communicator = communicator
        self._clear()
        self._sums += carried

    def _clear(self) -> None:
        self._sums = np.zeros(6)
        self.steps = 0
        self._started = time.perf_counter()
        self._data_wait = 0.0
        self._flops = 0

    def add(self, sums: Sequence[float], masked_tokens: int, pairs: int) -> None:
        """Count what came out of a step: `sums` as of `micro_batches.FIGURES`, and how many labels there were."""
        mlm_loss, mlm_correct, nsp_loss, nsp_correct = sums
        self._sums += [mlm_loss, mlm_correct, masked_tokens, nsp_loss, nsp_correct, pairs]

    def add_step(self, data_wait: float, flops: int) -> None:
        """Count one step, which waited `data_wait` seconds for its batch, and takes `flops` on this rank."""
        self.steps += 1
        self._data_wait += data_wait
        self._flops += flops

    def totals(self) -> WindowSums:
        """Return the sums over all ranks, which all call this.

        Float64 adds up float32 losses of one size without rounding, so it does not matter in which order.
        """
        totals = self._sums.copy()
        self._communicator.all_reduce(totals).wait()
        mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs = totals.tolist()
        return mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs

    def means(self, global_batch: int) -> dict[str, float]:
        """Return the means over all ranks and steps since the last call, and begin again. All ranks call this.

        Without sentence pairs there are no figures on them. Speeds are those of the steps that this process took.
        """
        mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs = self.totals()
        flops = self._communicator.all_reduce_scalar(self._flops)
        seconds = time.perf_counter() - self._started
        means = {
            "loss": mlm_loss / max(1, masked) + nsp_loss / max(1, pairs),
            "mlm_loss": mlm_loss / max(1, masked),
            "mlm_accuracy": mlm_correct / max(1, masked),
        }
        if pairs:
            means |= {"nsp_loss": nsp_loss / pairs, "nsp_accuracy": nsp_correct / pairs}
        means |= {
            "sequences_per_second": self.steps * global_batch / seconds,
            "model_flops_per_second": flops / seconds,
            "data_wait": self._data_wait / seconds,
        }
        self._clear()
        return means

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block out: an evaluation, or a checkpoint."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began


class MetricsLog:
    """Appends to `metrics.jsonl`, one object a line, and to TensorBoard's events if asked.

    A run that goes on at `first_step` drops what was logged after it: those steps are taken again. So is the last
    evaluation of a run that had `ended`.
    """

    def __init__(self, folder: Path, first_step: int, ended: bool, tensorboard: bool) -> None:
        self.path = folder / METRICS_FILE
        event_writer = _event_writer() if tensorboard else None
        _make(folder)
        entries = read_lines(self.path) if self.path.exists() else []
        kept = [
            entry
            for entry in entries
            if entry["step"] < first_step
            or (entry["step"] == first_step and not (ended and "held_out_mlm_loss" in entry))
        ]
        with written_aside(self.path, ConfigError) as file:
            file.writelines(_line(entry) for entry in kept)
        self._file = self.path.open("ab")
        # Of the steps after `first_step`, TensorBoard forgets what it has.
        self._events = event_writer(str(folder / "tensorboard"), purge_step=first_step + 1) if event_writer else None

    def write(self, entry: dict[str, Any]) -> None:
        """Write one line; it has at least `step`."""
        try:
            self._file.write(_line(entry))
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"{self.path} could not be written: {error.strerror or error}") from error
        if self._events is not None:
            for name, value in entry.items():
                if name != "step" and math.isfinite(value):
                    self._events.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        # What could not be written has been told by `write`.
        with suppress(OSError):
            self._file.close()
        if self._events is not None:
            self._events.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a metrics file; lines that are damaged, as by a kill or a full disk, are left out."""
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and _is_step(entry.get("step")) and all(map(_is_figure, entry.values())):
            entries.append(entry)
    return entries


def _is_step(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _is_figure(value: object) -> bool:
    """Whether a value is what `MetricsLog` writes: a number of usual size, or null."""
    return value is None or (isinstance(value, int | float) and abs(value) < _LARGEST_FIGURE)


def _line(entry: dict[str, Any]) -> bytes:
    """Return the entry as a line of JSON, which knows no NaN: what is not finite is null."""
    values = {name: value if value is not None and math.isfinite(value) else None for name, value in entry.items()}
    return json.dumps(values, allow_nan=False).encode() + b"\n"


def _event_writer() -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "train.tensorboard is true, but tensorboardX is not installed: pip install -e '.[tensorboard]'"
        ) from error
    return SummaryWriter


class ProgressLine:
    """Shows how the run goes: a live line on a terminal, one line a report elsewhere."""

    def __init__(self, steps: int, first_step: int) -> None:
        self._steps = steps
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        if self._console.is_interactive:
            self._progress = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[report]}"),
                console=self._console,
                auto_refresh=False,
            )
            self._task = self._progress.add_task("train", total=steps, completed=first_step, report="")
        self._started, self._first_step = time.perf_counter(), first_step
        self._refreshed = self._started

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, step: int) -> None:
        """Show that `step` steps have been taken."""
        if self._progress is not None:
            now = time.perf_counter()
            self._progress.update(self._task, completed=step, refresh=now - self._refreshed > _SECONDS_PER_REFRESH)
            if now - self._refreshed > _SECONDS_PER_REFRESH:
                self._refreshed = now

    def report(self, step: int, means: dict[str, float], most_seconds: float) -> None:
        """Show the means of the steps up to `step`; the rest takes no longer than `most_seconds`."""
        nsp = f"NSP {means['nsp_accuracy']:5.1%}  " if "nsp_accuracy" in means else ""
        left = (time.perf_counter() - self._started) / (step - self._first_step) * (self._steps - step)
        text = (
            f"loss {means['loss']:.3f}  MLM {means['mlm_accuracy']:5.1%}  {nsp}"
            f"{means['sequences_per_second']:,.0f} sequences/s  MFU {means['mfu']:.0%}  "
            f"{_duration(max(0.0, min(left, most_seconds)))} left"
        )
        if self._progress is not None:
            self._progress.update(self._task, completed=step, report=text, refresh=True)
        else:
            self.say(f"step {step:>{len(str(self._steps))}}/{self._steps}  {text}")

    def say(self, message: str) -> None:
        """Print a line of its own."""
        self._console.print(message, markup=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"run_folder: {folder} could not be made: {error.strerror}") from error
