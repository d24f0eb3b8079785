"""Finds the steps of a run that can be replayed: those between two of its checkpoints, with one choice of settings.

The settings are those that the last of the checkpoints notes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lucid.analysis.samples import open_same_corpora
from lucid.errors import CheckpointError, ConfigError
from lucid.training.checkpoints.checkpoint import TrainingState, read_state
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig, from_dict
from lucid.training.history import History
from lucid.training.start import difference


@dataclass(frozen=True)
class Replay:
    """The steps of a run after `first`, where it has a checkpoint or begins (0), up to the last of the checkpoints.

    `checkpoints` has their folders by step, in order. `reported` are those of these steps up to which all steps are in
    the log. `threads` is the number of threads of each rank at that time, None if it is not known.
    """

    config: RunConfig
    first: int
    checkpoints: dict[int, Path]
    reported: list[int]
    threads: int | None

    def as_json(self) -> str:
        """Return the replay as JSON, for the other ranks."""
        folders = {str(step): str(folder) for step, folder in self.checkpoints.items()}
        return json.dumps({**vars(self), "config": self.config.as_dict(), "checkpoints": folders})

    @classmethod
    def from_json(cls, text: str) -> "Replay":
        """Return what `as_json` made of a replay."""
        content = json.loads(text)
        folders = {int(step): Path(folder) for step, folder in content["checkpoints"].items()}
        return cls(**{**content, "config": from_dict(content["config"]), "checkpoints": folders})


def find_replay(run: Path, steps: str | None, overrides: Sequence[str], size: int) -> Replay:
    """Find the replay of `steps` ("A:B") of the run in a folder, or else of those between its two newest checkpoints.

    Raises a `LucidError` if `size` ranks cannot replay it bit for bit, or nothing notes how it was trained.
    """
    if not CheckpointStore(run / "checkpoints").has_any():
        raise ConfigError(f"{run} is not the folder of a run that has a checkpoint: give one")
    history = History.of(run, overrides)
    states = {step: read_state(folder) for step, folder in sorted(history.checkpoints.items())}
    first, last = _ends(run, steps, list(states))
    state = states[last]
    config = from_dict(state.config, overrides)
    within = {step: states[step] for step in states if first < step <= last}
    if first == 0 and config.branch_from is not None:
        raise ConfigError(
            f"the run branches from {config.branch_from} (branch_from): replay the steps before its first checkpoint "
            f"there, or begin at step {min(within)} here"
        )
    _check_settings_stay(states.get(first), within)
    _check_replays(config, {**within, **({first: states[first]} if first else {})}, size)
    config = config.model_copy(update={"run_folder": history.stretches[0].config.run_folder})
    open_same_corpora(config, state.corpus)
    threads = state.numerics.get("threads_per_rank", "")
    return Replay(
        config=config,
        first=first,
        checkpoints={step: history.checkpoints[step] for step in within},
        reported=[step for step, each in within.items() if not any(each.window)],
        threads=config.threads_per_rank or (int(threads) if threads.isdigit() else None),
    )


def _ends(run: Path, steps: str | None, known: list[int]) -> tuple[int, int]:
    """Return the steps at which a replay begins and ends. Raises `ConfigError`."""
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
    """Raise `CheckpointError` if the run may have had several settings, or corpora, within a replay.

    `start` is the state at its beginning; `within` has those of the checkpoints after it.
    """
    states = list(within.values())
    # The settings of an attempt hold from where it began.
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
