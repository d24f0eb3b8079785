"""Replays a stretch of a run between two of its checkpoints, and compares what comes out with what the run recorded.

The training loop itself takes the steps again, from the first checkpoint, with the settings that the last one notes.
Under the exact reduction the same bits come out on any number of ranks that it allows. Nothing of the run is changed.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lucid.analysis.samples import open_same_corpora
from lucid.backend import Array
from lucid.distributed import ProcessGroup, all_or_none, run_on_first_rank
from lucid.errors import CheckpointError, ConfigError
from lucid.files import reason_of
from lucid.models.bert import hub
from lucid.training.checkpoints.checkpoint import (
    OPTIMIZER_FILE,
    TrainingState,
    open_checkpoint,
    read_state,
)
from lucid.training.config import RunConfig, from_dict
from lucid.training.history import History
from lucid.training.metrics import METRICS_FILE, Entry, is_evaluation, read_lines
from lucid.training.numerical_environment import limit_threads
from lucid.training.reports import Reports
from lucid.training.setup import communicator_of, open_run
from lucid.training.start import difference
from lucid.training.trainer import Trainer

# A step that no run reaches.
_NEVER = 2**31 - 1
_COUNTERS = "step", "samples_consumed", "optimizer_updates", "skipped_steps", "skipped_in_a_row"
# What the log has of each step that does not depend on the clock.
_LOGGED = (
    "loss", "mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "gradient_norm", "learning_rate", "skipped_steps",
    "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Stretch:
    """The steps of a run after `first`, where it has a checkpoint or begins (0), up to the last of the checkpoints.

    `checkpoints` has their folders by step, in order. `reported` are those of these steps up to which all steps are in
    the log. `threads` is the number of threads of each rank at that time, None if it is not known.
    """

    config: RunConfig
    first: int
    checkpoints: dict[int, Path]
    reported: list[int]
    threads: int | None

    @property
    def last(self) -> int:
        return max(self.checkpoints)

    def as_json(self) -> str:
        """Return the stretch as JSON, for the other ranks."""
        folders = {str(step): str(folder) for step, folder in self.checkpoints.items()}
        return json.dumps({**vars(self), "config": self.config.as_dict(), "checkpoints": folders})

    @classmethod
    def from_json(cls, text: str) -> "Stretch":
        """Return what `as_json` made of a stretch."""
        content = json.loads(text)
        folders = {int(step): Path(folder) for step, folder in content["checkpoints"].items()}
        return cls(**{**content, "config": from_dict(content["config"]), "checkpoints": folders})


@dataclass(frozen=True)
class Difference:
    """Numbers of one name whose bits differ: `count` of `size`, by at most `largest`."""

    name: str
    count: int
    size: int
    largest: float

    def __str__(self) -> str:
        return f"{self.name}: {self.count:,} of {self.size:,} numbers differ, by at most {self.largest:.3g}"


@dataclass
class Comparison:
    """What differs between a replay and the record of a run, in the order in which it was found.

    `step` is that of the last checkpoint that was compared, and `lines` counts those of the log. `logged` is a sentence
    about the first of them that differs, and `environment` says in what the software or the numerical
    environment differs.
    """

    step: int
    lines: int = 0
    arrays: list[Difference] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    logged: str | None = None
    environment: str = ""

    @property
    def is_same(self) -> bool:
        return not (self.arrays or self.counters or self.logged)


def find_stretch(run: Path, steps: str | None, overrides: Sequence[str], size: int) -> Stretch:
    """Find the stretch `steps` ("A:B") of the run in a folder, or the newest between two of its checkpoints.

    Raises a `LucidError` if `size` ranks cannot replay it bit for bit, or nothing notes how it was trained.
    """
    history = History.of(run, overrides)
    states = {step: read_state(folder) for step, folder in sorted(history.checkpoints.items())}
    first, last = _ends(run, steps, list(states))
    state = states[last]
    config = from_dict(state.config, overrides)
    within = {step: states[step] for step in states if first < step <= last}
    if first == 0 and config.branch_from is not None:
        raise ConfigError(
            f"the run goes on from {config.branch_from} (branch_from): replay the steps before its first checkpoint "
            f"there, or begin at step {min(within)} here"
        )
    _check_settings_stay(states.get(first), within)
    _check_replays(config, {**within, **({first: states[first]} if first else {})}, size)
    config = config.model_copy(update={"run_folder": history.stretches[0].config.run_folder})
    open_same_corpora(config, state.corpus)
    threads = state.numerics.get("threads_per_rank", "")
    return Stretch(
        config=config,
        first=first,
        checkpoints={step: history.checkpoints[step] for step in within},
        reported=[step for step, each in within.items() if not any(each.window)],
        threads=config.threads_per_rank or (int(threads) if threads.isdigit() else None),
    )


def _ends(run: Path, steps: str | None, known: list[int]) -> tuple[int, int]:
    """Return the steps before the first and at the end of a stretch. Raises `ConfigError`."""
    listed = f"{run} has checkpoints of steps {', '.join(f'{step:,}' for step in known)}, and 0 is its beginning"
    if steps is None:
        if len(known) < 2:
            raise ConfigError(f"{listed}: say what to replay, as in --steps 0:{known[-1]}")
        return known[-2], known[-1]
    match = re.fullmatch(r"(\d{0,18}):(\d{0,18})", steps, re.ASCII)
    if not match:
        raise ConfigError(f"--steps is {steps!r}: give two steps with checkpoints, as in --steps 0:{known[-1]}")
    first, last = int(match[1] or 0), int(match[2] or known[-1])
    if last not in known or first not in (0, *known):
        raise ConfigError(f"--steps is {steps!r}, but {listed}")
    if first >= last:
        raise ConfigError(f"--steps is {steps!r}: the first step has to come before the last")
    return first, last


def _check_settings_stay(start: TrainingState | None, within: Mapping[int, TrainingState]) -> None:
    """Raise `CheckpointError` if the run may have had several settings, or corpora, within the stretch.

    `start` is the state at its beginning; `within` has those of the checkpoints after it.
    """
    states = list(within.values())
    # The settings of a start of the run hold from where it began.
    if start is not None and (states[0].began is None or states[0].began > start.step):
        states.insert(0, start)
    for before, after in pairwise(states):
        if changed := difference(_decisive(after), _decisive(before)):
            raise CheckpointError(
                f"the run went on with other settings between steps {before.step:,} and {after.step:,} ({changed}): "
                f"replay what has one of them alone, up to --steps :{before.step} or from --steps {after.step}: on"
            )


def _decisive(state: TrainingState) -> dict[str, Any]:
    config = from_dict(state.config)
    return {**config.curve_settings, "train.log_every": config.train.log_every, "the corpus": state.corpus[:12]}


def _check_replays(config: RunConfig, states: Mapping[int, TrainingState], size: int) -> None:
    """Raise a `LucidError` if `size` ranks cannot replay steps of a run with these settings bit for bit."""
    if config.train.max_hours is not None:
        raise ConfigError(
            "the run has train.max_hours, with which the learning rate follows the clock: no replay gives the same bits"
        )
    if config.train.balance == "speed":
        raise ConfigError(
            "the run has train.balance=speed, with which ranks share steps by the clock: no replay gives the same bits"
        )
    config.check_ranks(size)
    if config.train.reduction == "exact":
        return
    for state in states.values():
        if state.ranks is not None and state.ranks != size:
            raise ConfigError(
                f"the run has used the fast reduction on {state.ranks} ranks, which gives the same bits on that number "
                f"alone: replay it there (mpiexec -n {state.ranks} lucid verify ...), or train with "
                "train.reduction=exact, whose bits are the same on any number"
            )


class _Log(Reports):
    """Keeps what a replay would log."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def training(self, step: int, metrics: dict[str, float], *rest: Any) -> None:
        self.entries.append({"step": step, **metrics})


def replay(stretch: Stretch, group: ProcessGroup) -> Comparison:
    """Replay a stretch of a run on all ranks of `group`, up to the first of its checkpoints that differs.

    All ranks call this. The result is complete on the first rank; all know whether it `is_same`.
    """
    limit_threads(stretch.threads)
    log = _Log()
    run = open_run(_quiet(stretch.config), communicator_of(stretch.config, group), at=stretch.first)
    trainer = Trainer(run, log)
    comparison = Comparison(stretch.first)
    for step, folder in stretch.checkpoints.items():
        state = trainer.replay(step, step in stretch.reported)
        replayed = _Replayed(run.model.state_dict(), run.optimizer.state_dict(), state, log.entries)
        metrics = stretch.config.run_folder / METRICS_FILE
        action = partial(_compare, replayed, folder, metrics) if run.is_first else partial(Comparison, step)
        comparison = all_or_none(run.communicator, action)
        if run.communicator.all_reduce_scalar(not comparison.is_same) > 0:
            break
    return comparison


def _quiet(config: RunConfig) -> RunConfig:
    """Return the settings of a run that takes the same steps, and does nothing else."""
    changes = {
        "checkpoint_every": _NEVER,
        "evaluate_every": None,
        "audit_every": None,
        "keep_best": False,
        "patience": None,
        "tensorboard": False,
    }
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


@dataclass(frozen=True)
class _Replayed:
    """What a replay has made: arrays by name, its state, and the lines that it would have logged."""

    weights: Mapping[str, Array]
    moments: Mapping[str, Array]
    state: TrainingState
    entries: list[Entry]


def _compare(replayed: _Replayed, folder: Path, metrics: Path) -> Comparison:
    """Compare with the checkpoint `folder` and the log `metrics` of the run. Raises `CheckpointError`."""
    recorded, pairs = open_checkpoint(folder).state, _pairs(replayed.entries, metrics)
    return Comparison(
        replayed.state.step,
        len(pairs),
        [
            *_differences(replayed.weights, folder / hub.WEIGHTS_FILE),
            *_differences(replayed.moments, folder / OPTIMIZER_FILE),
        ],
        _other_counters(replayed.state, recorded),
        _other_line(pairs),
        _environment(replayed.state, recorded),
    )


def _environment(own: TrainingState, recorded: TrainingState) -> str:
    """Return what differs between the software and the numerical environment of a replay and those of the run."""
    if not recorded.software:
        unknown = "an earlier version of lucid trained these steps, and did not note which"
        return "; ".join(filter(None, [unknown, difference(own.numerics, recorded.numerics)]))
    return difference({**own.software, **own.numerics}, {**recorded.software, **recorded.numerics})


def _differences(own: Mapping[str, Array], path: Path) -> Iterator[Difference]:
    """Yield how arrays differ from those of the same names in the file `path`."""
    try:
        with safe_open(path, framework="numpy") as file:
            for name, array in own.items():
                recorded = file.get_tensor(name)
                different = np.ascontiguousarray(array).view(np.uint32) != recorded.view(np.uint32)
                if count := int(np.count_nonzero(different)):
                    with np.errstate(invalid="ignore", over="ignore"):
                        largest = float(np.abs(array[different] - recorded[different]).max())
                    yield Difference(name, count, array.size, largest)
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be compared: {error}") from error


def _other_counters(own: TrainingState, recorded: TrainingState) -> list[str]:
    """Return a sentence for each counter that differs, and for the sums of the steps that are not logged yet."""
    found = []
    for name in _COUNTERS:
        values = getattr(own, name), getattr(recorded, name)
        if values[0] != values[1]:
            found.append(f"{name} is {values[0]:,} in the replay, {values[1]:,} in the checkpoint")
    if np.array(own.window).tobytes() != np.array(recorded.window).tobytes():
        found.append("the sums of losses since the last line of the log differ")
    return found


def _pairs(entries: Sequence[Entry], path: Path) -> list[tuple[Entry, Entry]]:
    """Return the lines that a replay would log, each with the run's own for that step, if it has one."""
    try:
        lines = read_lines(path) if os.path.lexists(path) else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    recorded = {line["step"]: line for line in lines if not is_evaluation(line)}
    return [(entry, recorded[entry["step"]]) for entry in entries if entry["step"] in recorded]


def _other_line(pairs: Sequence[tuple[Entry, Entry]]) -> str | None:
    """Return a sentence about the first line of the log that differs from the replay's, None if all are the same."""
    for entry, line in pairs:
        for name in _LOGGED:
            if name in line and name in entry and line[name] != (value := _as_logged(entry[name])):
                return f"step {entry['step']:,}: {name} is {value} in the replay, {line[name]} in the log"
    return None


def _as_logged(value: float) -> float | None:
    return value if math.isfinite(value) else None


def verify(run: Path, steps: str | None, overrides: Sequence[str], group: ProcessGroup) -> tuple[Stretch, Comparison]:
    """Find a stretch of a run, and replay it. All ranks of `group` call this; a `LucidError` is raised on all."""
    text = run_on_first_rank(group, lambda: find_stretch(run, steps, overrides, group.size).as_json())
    stretch = Stretch.from_json(text)
    return stretch, replay(stretch, group)
