"""Which samples the steps of a run have: from its settings before it runs, from its checkpoints afterwards.

Nothing is replayed. The samples of a step are a range of numbers, from which the sampler makes them. The newest
checkpoint says how many samples the steps before it had, and with which settings.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lucid.errors import CheckpointError, ConfigError
from lucid.training.checkpoints.checkpoint import Past, TrainingState
from lucid.training.checkpoints.store import CheckpointStore, find_checkpoint
from lucid.training.config import RunConfig, from_dict, load
from lucid.training.config.sections import AUTO
from lucid.training.end import patience_has_ended


@dataclass(frozen=True)
class Stretch:
    """Steps `first` to `last` of a run, which have the same settings. Steps are counted from 1, as in the log.

    `consumed` is the number of samples that the steps before `first` had. `corpus` is the identity of the corpus that
    the run had so far, "" before it has begun. `known` is False where an earlier version of lucid trained: there may
    have been changes that nothing notes.
    """

    first: int
    last: int
    consumed: int
    config: RunConfig
    corpus: str = ""
    known: bool = True

    @property
    def samples(self) -> range:
        """The numbers of its samples in the run."""
        return range(self.consumed, self.consumed + (self.last - self.first + 1) * self.config.train.global_batch)

    def samples_before(self, step: int) -> int:
        """Return how many samples of the run come before those of one of its steps."""
        return self.consumed + (step - self.first) * self.config.train.global_batch

    def place_of(self, sample: int) -> tuple[int, int]:
        """Return the step of one of its samples, and the sample's row in the global batch."""
        steps, row = divmod(sample - self.consumed, self.config.train.global_batch)
        return self.first + steps, row

    def goes_on_in(self, later: "Stretch") -> bool:
        """Return whether the samples of `later` are made in the same way, and follow at once."""
        made = [(each.config.sample_settings, each.corpus, each.known) for each in (self, later)]
        return self.last + 1 == later.first and made[0] == made[1]


@dataclass(frozen=True)
class History:
    """The stretches of a run in order, its `last` step, and its checkpoints by their steps, newest first.

    There are gaps where a run of an earlier version of lucid changed its global batch between two checkpoints: nothing
    notes at which step. `messages` are for users.
    """

    stretches: tuple[Stretch, ...]
    last: int
    checkpoints: dict[int, Path]
    messages: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str] = ()) -> "History":
        """Return the history of the run in the folder `path`, or what the settings in the file `path` will make.

        Of a run only `data.path` can be overridden, in case the corpus has moved. The settings of a run that has begun
        have to be its own. Raises `ConfigError` and `CheckpointError`.
        """
        if path.is_file():
            config = load(path, overrides)
            states, problems = CheckpointStore(config.run_folder / "checkpoints").states()
            if states:
                _check_goes_on(config, path, next(iter(states.values())))
            elif config.branch_from is not None:
                parent = find_checkpoint(config.branch_from, say=problems.append)
                states = {parent.folder: parent.state}
            else:
                return cls((Stretch(1, config.train.steps, 0, config),), config.train.steps, {})
            return cls._of_run(states, problems, config, _place_is_given(overrides))
        if not (path / "checkpoints").is_dir():
            what = "is neither the folder of a run nor a file of settings" if path.exists() else "does not exist"
            raise ConfigError(f"{path} {what}: give the folder of a run, or the YAML file of one that has not begun")
        if others := [text for text in overrides if not _place_is_given([text])]:
            raise ConfigError(f"{others[0]}: {path} has run with its own settings; only data.path can be given anew")
        states, problems = CheckpointStore(path / "checkpoints").states()
        if not states:
            raise CheckpointError(f"{path} has no checkpoint yet: give the YAML file of the run")
        now = from_dict(next(iter(states.values())).config, overrides)
        return cls._of_run(states, problems, now.model_copy(update={"run_folder": path}), _place_is_given(overrides))

    @classmethod
    def _of_run(cls, states: dict[Path, TrainingState], problems: list[str], now: RunConfig, moved: bool) -> "History":
        """Return the history of a run with these checkpoints, the newest first, which goes on with the settings `now`.

        `now` says where its folder and its corpus are; if that is `moved`, also those that it had before.
        """
        newest = next(iter(states.values()))
        messages = [f"skipped a damaged checkpoint: {problem}" for problem in problems]
        checkpoints = {state.step: folder for folder, state in states.items()}
        last = newest.step if patience_has_ended(now, newest.best) else max(newest.step, now.train.steps)
        stretches = tuple(_joined(_stretches(_ends(states.values()), now, last, newest.corpus, moved)))
        return cls(stretches, last, checkpoints, messages)

    def at(self, step: int) -> Stretch:
        """Return the stretch that a step is in. Raises `ConfigError` if there is none."""
        if not 1 <= step <= self.last:
            raise ConfigError(f"the run has no step {step:,}: its steps are 1 to {self.last:,}")
        for stretch in self.stretches:
            if stretch.first <= step <= stretch.last:
                return stretch
        before = max((stretch.last for stretch in self.stretches if stretch.last < step), default=0)
        after = min((stretch.first for stretch in self.stretches if stretch.first > step), default=self.last + 1)
        raise ConfigError(
            f"the samples of step {step:,} are not known: the global batch changed somewhere in steps {before + 1:,} "
            f"to {after - 1:,}, between two checkpoints"
        )

    def doubt(self, steps: range) -> str | None:
        """Return a sentence about those of these steps whose samples may have been others, if there are any."""
        doubtful = [each for each in self.stretches if not each.known and each.last >= steps.start]
        doubtful = [each for each in doubtful if each.first < steps.stop]
        if not doubtful:
            return None
        return (
            f"an earlier version of lucid trained steps {doubtful[0].first:,} to {doubtful[-1].last:,} and did not "
            "note changes of settings: if the run was resumed with others in these steps, their samples may have been "
            "others"
        )

    def checkpoint_for(self, step: int, wanted: int | None = None) -> int:
        """Return the step of the checkpoint `wanted`, or else of the newest from before `step`, or else of the oldest.

        Raises `ConfigError` if the run has no such checkpoint.
        """
        steps = sorted(self.checkpoints)
        if not steps:
            raise ConfigError("the run has no checkpoint yet: train it first, or leave out --loss")
        if wanted is not None and wanted not in steps:
            raise ConfigError(f"there is no checkpoint of step {wanted:,}, but of {', '.join(map(str, steps))}")
        return wanted if wanted is not None else max((each for each in steps if each < step), default=steps[0])


def _place_is_given(overrides: Sequence[str]) -> bool:
    return any(text.partition("=")[0].strip() == "data.path" for text in overrides)


def _check_goes_on(config: RunConfig, path: Path, newest: TrainingState) -> None:
    """Raise `ConfigError` if `config`, from the file `path`, makes other samples than the run that has begun."""
    now, then = config.sample_settings, from_dict(newest.config).sample_settings
    names = [name for name in now if now[name] not in (then[name], AUTO)]
    if changed := "; ".join(f"{name} is {then[name]} there, and {now[name]} here" for name in names):
        raise ConfigError(
            f"{config.run_folder} has trained with other settings than those of {path} ({changed}): give that folder "
            "for the samples that it had, or run_folder=FOLDER for a new run"
        )


def _ends(states: Iterable[TrainingState]) -> list[Past]:
    """Return the ends of the stretches so far, the last one included, from the states of a run, the newest first."""
    states = list(states)
    ends = [state.as_past(known=False) for state in states if state.past is None]
    newest = next((state for state in states if state.past is not None), None)
    if newest is not None:
        ends += [*(newest.past or ()), newest.as_past(known=True)]
    return sorted(ends, key=lambda end: end.step)


def _stretches(ends: Iterable[Past], now: RunConfig, last: int, corpus: str, moved: bool) -> Iterator[Stretch]:
    """Yield the stretches with these ends, and the one to come up to `last`; none where counts contradict each other.

    `corpus` is the identity of the newest corpus, which is where `now` says. If it is `moved`, so are earlier ones.
    """
    step = consumed = 0
    for end in ends:
        config = from_dict(end.config).model_copy(update={"run_folder": now.run_folder})
        if moved or end.corpus == corpus:
            config = config.model_copy(update={"data": config.data.model_copy(update={"path": now.data.path})})
        done = Stretch(step + 1, end.step, consumed, config, end.corpus, end.known)
        if end.step > step and done.samples.stop == end.samples_consumed:
            yield done
        step, consumed = end.step, end.samples_consumed
    if last > step:
        yield Stretch(step + 1, last, consumed, now, corpus)


def _joined(stretches: Iterator[Stretch]) -> Iterator[Stretch]:
    """Yield the stretches; those that go on in the next one together with it."""
    before = None
    for stretch in stretches:
        if before is not None and before.goes_on_in(stretch):
            stretch = replace(stretch, first=before.first, consumed=before.consumed)
        elif before is not None:
            yield before
        before = stretch
    if before is not None:
        yield before
