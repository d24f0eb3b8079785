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
from lucid.training.checkpoints.store import CheckpointStore, attempt_of
from lucid.training.config import RunConfig, from_dict
from lucid.training.config.effects import bit_settings
from lucid.training.formatting import count
from lucid.training.history import History
from lucid.training.start import difference

# What earlier versions of lucid did not note in each checkpoint.
_NOT_ALWAYS_NOTED = "train.threads_per_rank", "the number of ranks"


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
    if not run.exists():
        raise ConfigError(f"{run} does not exist")
    if not CheckpointStore(run / "checkpoints").has_any():
        raise ConfigError(f"{run} is not the folder of a run that has a checkpoint: give one")
    history = History.of(run, overrides)
    states = {step: read_state(folder) for step, folder in sorted(history.checkpoints.items())}
    first, last = _ends(run, steps, list(states))
    state = states[last]
    within = {step: states[step] for step in states if first < step <= last}
    _check_starts_are_known(first, {step: attempt_of(folder) for step, folder in history.checkpoints.items()}, within)
    config = from_dict(state.config, overrides)
    if first == 0:
        config = _from_the_beginning(config, next(iter(within.values())))
    trained = list(within.values())
    # The settings of an attempt hold from where it began.
    if first > 0 and (trained[0].began is None or trained[0].began > first):
        trained.insert(0, states[first])
    _check_settings_stay(first, trained, [*states])
    _check_replays(config, trained, size)
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
    of_steps = f"step{'s' * (len(known) > 1)} {', '.join(f'{step:,}' for step in known)}"
    listed = f"{run} has checkpoints of {of_steps}, and 0 is its beginning"
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


def _check_starts_are_known(first: int, attempts: Mapping[int, int], within: Mapping[int, TrainingState]) -> None:
    """Raise `CheckpointError` if an attempt that left no checkpoint may have trained some of the steps.

    `attempts` has the numbers of the attempts that wrote the checkpoints of the run, by step.
    """
    before, attempt = first, attempts.get(first, 0)
    for step, state in within.items():
        has_trained_all = state.began is not None and state.began <= before
        if not has_trained_all and attempts[step] > attempt + 1:
            where = f"before step {step:,}" if state.began is None else f"at step {state.began:,}"
            raise CheckpointError(
                f"the run began again {where}, and no checkpoint notes with which settings it trained the steps from "
                f"{before + 1:,} up to there: replay steps after {step:,}"
            )
        before, attempt = step, attempts[step]


def _from_the_beginning(config: RunConfig, earliest: TrainingState) -> RunConfig:
    """Return the settings with the initial weights of the first attempt. Raises `ConfigError` for a branch."""
    begun = from_dict(earliest.config)
    if begun.branch_from is not None:
        raise ConfigError(
            f"the run branches from {begun.branch_from} (branch_from): replay the steps before its first checkpoint "
            f"there, or begin at step {earliest.step} here"
        )
    names = "initial_model", "initial_checkpoint", "branch_from"
    return config.model_copy(update={name: getattr(begun, name) for name in names})


def _check_settings_stay(first: int, trained: Sequence[TrainingState], known: Sequence[int]) -> None:
    """Raise `CheckpointError` if the run may have had several settings, or corpora, within a replay.

    `trained` has the states, in order, that note how the steps after `first` were trained. `known` are the steps of all
    checkpoints.
    """
    for before, after in pairwise(trained):
        one, other = _decisive(after), _decisive(before)
        # What an earlier version did not note is not compared.
        names = one.keys() & other.keys()
        if changed := difference({name: one[name] for name in names}, {name: other[name] for name in names}):
            begin, last = after.began if after.began in known else after.step, trained[-1].step
            parts = [f"up to --steps {first}:{before.step}"] if before.step > first else []
            parts += [f"from --steps {begin}:{last}"] if begin is not None and begin < last else []
            advice = f": replay what has one of them alone, {' or '.join(parts)}" if parts else ""
            raise CheckpointError(
                f"the run went on with other settings between steps {before.step:,} and {after.step:,} ({changed})"
                + advice
            )


def _decisive(state: TrainingState) -> dict[str, Any]:
    """Return what decides, with the weights, the bits of the steps up to a state and their lines in the log."""
    config = from_dict(state.config)
    decisive = {**bit_settings(config), "train.log_every": config.train.log_every, "the corpus": state.corpus[:12]}
    # What the launcher has given, where the settings leave it open.
    threads = "train.threads_per_rank"
    decisive[threads] = state.numerics.get("threads_per_rank", decisive[threads])
    if config.train.reduction == "fast":
        decisive["the number of ranks"] = state.ranks
    return {name: value for name, value in decisive.items() if value is not None or name not in _NOT_ALWAYS_NOTED}


def _check_replays(config: RunConfig, trained: Sequence[TrainingState], size: int) -> None:
    """Raise a `LucidError` if `size` ranks cannot replay steps of a run with these settings bit for bit."""
    if config.train.max_hours is not None:
        raise ConfigError(
            "the run has train.max_hours, with which the learning rate follows the clock: no replay gives the same bits"
        )
    if config.train.balance == "speed":
        raise ConfigError(
            "the run has train.balance=speed, with which ranks share steps by the clock: no replay gives the same bits"
        )
    config.shared_by(size).check()
    if config.train.reduction == "exact":
        return
    for state in trained:
        if state.ranks is not None and state.ranks != size:
            raise ConfigError(
                f"the run has used the fast reduction on {count(state.ranks, 'rank')}, which gives the same bits on "
                f"that number alone: replay it there (mpiexec -n {state.ranks} lucid verify ...), or train with "
                "train.reduction=exact, whose bits are the same on any number"
            )
