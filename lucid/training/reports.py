"""What a run tells its user, from its first rank: the log, and a line of progress."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lucid.training.evaluation import Evaluations
from lucid.training.explanations.explainer import Explainer
from lucid.training.explanations.facts import facts_of
from lucid.training.explanations.finding import Finding
from lucid.training.log.busy_cores import BusyCores
from lucid.training.log.metrics import MetricsLog
from lucid.training.run_on_rank import Run

_SECONDS_PER_REFRESH = 0.2
# Parts of a report that a narrow terminal does without: FLOPs, NSP, sequences, MLM, the time left, waits, the loss.
_DROPPED_FIRST = (5, 3, 4, 2, 6, 7, 1)
# Waits for the slowest rank are reported if they take a larger part of the time of all ranks.
_WAITS_TO_REPORT = 0.05


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

    def evaluation(self, step: int, evaluations: Evaluations) -> None:
        """Report the evaluations after `step` steps."""

    def say(self, message: str) -> None:
        """Report something else, in a sentence."""

    def findings_after(self, step: int) -> set[str]:
        """Return the names of the findings that were reported after `step` steps."""
        return set()


class FirstRankReports(Reports):
    """The reports of the first rank: it writes the log and shows progress, on a terminal by a live line.

    `ended` says whether the run had ended before.
    """

    def __init__(self, run: Run, ended: bool) -> None:
        train = run.config.train
        self._run = run
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._log = MetricsLog(run.config.run_folder, run.step, ended, train.tensorboard, self.say)
        facts = facts_of(run.config, run.corpora.train, run.counts)
        self._explainer = Explainer(facts, self._log.kept)
        self._is_live = self._console.is_interactive
        self._live = Live(console=self._console, auto_refresh=False)
        self._parts: list[str] = []  # of the last report
        self._findings: list[Finding] = []  # of the last line of the log
        self._cores = BusyCores()
        self._steps, self._first_step = train.steps, run.step
        self._started = self._refreshed = time.perf_counter()

    def __enter__(self) -> Self:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._log.close()
        if self._is_live:
            self._live.stop()

    def advance(self, step: int) -> None:
        if self._is_live and time.perf_counter() - self._refreshed > _SECONDS_PER_REFRESH:
            self._refresh(step)

    def training(self, step: int, metrics: dict[str, float], most_seconds: float) -> None:
        self._write(step, metrics)
        left = (time.perf_counter() - self._started) / (step - self._first_step) * (self._steps - step)
        self._parts = [
            f"loss {metrics['loss']:.3f}",
            f"MLM {metrics['mlm_accuracy']:5.1%}",
            f"NSP {metrics['nsp_accuracy']:5.1%}" if "nsp_accuracy" in metrics else "",
            f"{metrics['sequences_per_second']:,.0f} sequences/s",
            f"{metrics['model_flops_per_second'] / 1e9:,.1f} GFLOP/s",
            f"{_duration(max(0.0, min(left, most_seconds)))} left",
            waits_for_slowest(metrics, self._run.hosts),
        ]
        if self._is_live:
            self._refresh(step)
        else:
            self.say(fitting([self._progress(step), *self._parts]))
        if remark := self._cores.remark():
            self.say(remark)
        self._say_findings()

    def _refresh(self, step: int) -> None:
        """Show the live line: the last report, and the steps since then."""
        # A line as wide as the terminal would push its cursor to the next one.
        line = fitting([self._progress(step), *self._parts], self._console.width - 1)
        self._live.update(Text(line, no_wrap=True, overflow="crop"), refresh=True)
        self._refreshed = time.perf_counter()

    def _progress(self, step: int) -> str:
        return f"step {step:>{len(str(self._steps))}}/{self._steps}"

    def evaluation(self, step: int, evaluations: Evaluations) -> None:
        self._write(step, evaluations.as_dict())
        for sentence in evaluations.sentences():
            self.say(sentence)
        self._say_findings()

    def _say_findings(self) -> None:
        """Say what the curve shows since the last line of the log."""
        for finding in self._findings:
            self.say(f"{'warning' if finding.is_alarm else 'note'}: {finding}")

    def _write(self, step: int, values: dict[str, Any]) -> None:
        """Write a line of the log: where the run is, and these values."""
        samples = self._run.samples_consumed
        place = {"samples": samples, "epoch": self._run.corpora.train.epochs(samples)}
        entry = {"step": step, "time": time.time(), "attempt": self._run.attempt, **place, **values}
        self._log.write(entry)
        self._findings = self._explainer.add(entry)

    def say(self, message: str) -> None:
        self._console.print(message, markup=False)

    def findings_after(self, step: int) -> set[str]:
        return self._explainer.said_after(step)


def fitting(parts: Sequence[str], width: float = math.inf) -> str:
    """Join the parts of a report on a line of at most `width` characters; drop the least useful that do not fit.

    The parts are the step, the loss, the accuracies of MLM and NSP, sequences and FLOPs per second, the time left, and
    waits; "" is none.
    """
    shown = list(parts)
    for dropped in _DROPPED_FIRST:
        if len("  ".join(filter(None, shown))) > width and dropped < len(shown):
            shown[dropped] = ""
    return "  ".join(filter(None, shown))


def waits_for_slowest(metrics: Mapping[str, float], hosts: Sequence[str]) -> str:
    """Return for instance "waits 12% for rank 3 (node2)" if ranks lose much of their time by that, or else ""."""
    lost = metrics["communication_wait"] * metrics.get("slowest_rank_share", 0.0)
    if lost <= _WAITS_TO_REPORT:
        return ""
    slowest = int(metrics["slowest_rank"])
    return f"waits {lost:.0%} for rank {slowest} ({hosts[slowest]})"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
