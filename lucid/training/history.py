"""Which samples the steps of a run have: from its settings before it runs, from its checkpoints afterwards.

Nothing is replayed. The samples of a step are a range of numbers, from which the sampler makes them. A checkpoint says
how many samples the steps before it had, and which settings.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lucid.errors import CheckpointError, ConfigError
from lucid.training.checkpoints.checkpoint import TrainingState
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig, from_dict, load


@dataclass(frozen=True)
class Stretch:
    """Steps `first` to `last` of a run, which have the same settings. Steps are counted from 1, as in the log.

    `consumed` is the number of samples that the steps before `first` had. `corpus` is the identity of the corpus that
    the run had so far, "" before it has begun.
    """

    first: int
    last: int
    consumed: int
    config: RunConfig
    corpus: str = ""

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
        same = (self.config.data, self.config.train.seed) == (later.config.data, later.config.train.seed)
        batches = [(each.train.global_batch, each.train.micro_batch) for each in (self.config, later.config)]
        return self.last + 1 == later.first and same and batches[0] == batches[1] and self.corpus == later.corpus


@dataclass(frozen=True)
class History:
    """The stretches of a run in order, its `last` step, and its checkpoints by their steps, newest first.

    There are gaps where a run changed its global batch between two checkpoints: nothing records at which step.
    Checkpoints that were removed record nothing either: the steps before one have its settings. `messages` are for
    users.
    """

    stretches: tuple[Stretch, ...]
    last: int
    checkpoints: dict[int, Path]
    messages: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path, overrides: Sequence[str] = ()) -> "History":
        """Return the history of the run in the folder `path`, or what the settings in the file `path` will make.

        Of a run only `data.path` can be overridden, in case the corpus has moved. Raises `ConfigError` and
        `CheckpointError`.
        """
        if path.is_file():
            config = load(path, overrides)
            checkpoints = _steps(CheckpointStore(config.run_folder / "checkpoints").states()[0])
            return cls((Stretch(1, config.train.steps, 0, config),), config.train.steps, checkpoints)
        if not (path / "checkpoints").is_dir():
            what = "is neither the folder of a run nor a file of settings" if path.exists() else "does not exist"
            raise ConfigError(f"{path} {what}: give a run's folder, or before it has run its YAML file")
        if others := [text for text in overrides if text.partition("=")[0].strip() != "data.path"]:
            raise ConfigError(f"{others[0]}: {path} has run with its own settings; only data.path can be given anew")
        states, problems = CheckpointStore(path / "checkpoints").states()
        if not states:
            raise CheckpointError(f"{path} has no checkpoint yet: give the YAML file of the run")
        messages = [f"skipped a damaged checkpoint: {problem}" for problem in problems]
        newest = next(iter(states.values()))
        last = max(newest.step, from_dict(newest.config).train.steps)
        return cls(tuple(_joined(_stretches(states, overrides))), last, _steps(states), messages)

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


def _steps(states: dict[Path, TrainingState]) -> dict[int, Path]:
    return {state.step: folder for folder, state in states.items()}


def _stretches(states: dict[Path, TrainingState], overrides: Sequence[str]) -> Iterator[Stretch]:
    """Yield the stretches up to each checkpoint, and the one to come; none where the counts contradict each other."""
    step = consumed = 0
    for state in reversed(states.values()):
        config = from_dict(state.config, overrides)
        done = Stretch(step + 1, state.step, consumed, config, state.corpus)
        if state.step > step and done.samples.stop == state.samples_consumed:
            yield done
        step, consumed = state.step, state.samples_consumed
    if config.train.steps > step:
        yield Stretch(step + 1, config.train.steps, consumed, config, state.corpus)


def _joined(stretches: Iterator[Stretch]) -> Iterator[Stretch]:
    """Yield the stretches; those that go on in the next one together with it."""
    before = None
    for stretch in stretches:
        if before is not None and before.goes_on_in(stretch):
            stretch = Stretch(before.first, stretch.last, before.consumed, stretch.config, stretch.corpus)
        elif before is not None:
            yield before
        before = stretch
    if before is not None:
        yield before
