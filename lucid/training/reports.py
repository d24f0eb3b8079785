"""What a run tells its user, from its first rank: the log, and a line of progress."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from lucid.training.evaluation import Evaluation
from lucid.training.metrics import MetricsLog
from lucid.training.setup import Run

_SECONDS_PER_REFRESH = 0.2


class Reports:
    """The reports of a rank that is not the first: none. The metrics of a step have the names that the log uses."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def advance(self, step: int) -> None:
        """Report that a run has taken `step` steps."""

    def training(self, step: int, metrics: dict[str, float], most_seconds: float) -> None:
        """Report the metrics of the steps up to `step`; the run ends within `most_seconds` from now."""

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Report an evaluation after `step` steps."""

    def say(self, message: str) -> None:
        """Report something else, in a sentence."""


class FirstRankReports(Reports):
    """The reports of the first rank: it writes the log and shows progress, on a terminal by a live line.

    `ended` says whether the run had ended before.
    """

    def __init__(self, run: Run, ended: bool) -> None:
        train = run.config.train
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._log = MetricsLog(run.config.run_folder, run.step, ended, train.tensorboard, self.say)
        self._is_live = self._console.is_interactive
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[report]}"),
            console=self._console,
            auto_refresh=False,
            disable=not self._is_live,
        )
        self._task = self._progress.add_task("train", total=train.steps, completed=run.step, report="")
        self._steps, self._first_step = train.steps, run.step
        self._started = self._refreshed = time.perf_counter()

    def __enter__(self) -> Self:
        if self._is_live:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._log.close()
        if self._is_live:
            self._progress.stop()

    def advance(self, step: int) -> None:
        is_due = time.perf_counter() - self._refreshed > _SECONDS_PER_REFRESH
        self._progress.update(self._task, completed=step, refresh=is_due)
        if is_due:
            self._refreshed = time.perf_counter()

    def training(self, step: int, metrics: dict[str, float], most_seconds: float) -> None:
        self._log.write({"step": step, **metrics})
        left = (time.perf_counter() - self._started) / (step - self._first_step) * (self._steps - step)
        nsp = f"NSP {metrics['nsp_accuracy']:5.1%}  " if "nsp_accuracy" in metrics else ""
        text = (
            f"loss {metrics['loss']:.3f}  MLM {metrics['mlm_accuracy']:5.1%}  {nsp}"
            f"{metrics['sequences_per_second']:,.0f} sequences/s  "
            f"{metrics['model_flops_per_second'] / 1e9:,.1f} GFLOP/s  "
            f"{_duration(max(0.0, min(left, most_seconds)))} left"
        )
        if self._is_live:
            self._progress.update(self._task, completed=step, report=text, refresh=True)
        else:
            self.say(f"step {step:>{len(str(self._steps))}}/{self._steps}  {text}")

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        self._log.write({"step": step, **evaluation.as_dict()})
        self.say(evaluation.sentence())

    def say(self, message: str) -> None:
        self._console.print(message, markup=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
