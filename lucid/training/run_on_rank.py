"""`Run`: a run on this rank, its parts and its state. `setup.py` makes it, and `trainer.py` trains it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lucid.distributed import Communicator, DistributedDataParallel
from lucid.distributed.locations import RankLocation
from lucid.models import BERTForPreTraining
from lucid.optim.moments import MomentOptimizer
from lucid.training.checkpoints.best import Best
from lucid.training.checkpoints.checkpoint import Inherited, TrainingState, WindowSums
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig
from lucid.training.corpora import Corpora
from lucid.training.counts.kept import KeptCounts
from lucid.training.end import patience_has_ended
from lucid.training.micro_batches import MicroBatches
from lucid.training.numerical_environment import numerical_environment
from lucid.training.probes import Probe
from lucid.training.product_choices import ProductChoices, choices_so_far, times_products
from lucid.training.start import past_of


@dataclass
class Run:
    """A run on this rank: its parts and its state."""

    config: RunConfig
    communicator: Communicator
    corpora: Corpora
    ddp: DistributedDataParallel[BERTForPreTraining]
    optimizer: MomentOptimizer
    store: CheckpointStore
    inherited: Inherited = field(default_factory=Inherited)
    probes: Sequence[Probe] = ()
    # On the first rank: the state from which this attempt resumes or branches.
    before: TrainingState | None = None
    messages: list[str] = field(default_factory=list)
    # What has tried the size of the micro-batches, if `train.micro_batch` was auto.
    micro_batches: MicroBatches | None = None
    step: int = 0
    # The step at which this attempt begins.
    began: int = 0
    samples_consumed: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    # Equal on all ranks.
    best: Best | None = None
    # The time of all steps so far, earlier attempts included; the first rank's value counts.
    training_seconds: float = 0.0
    # The sums, at the start, of steps that the log does not report yet: those of all ranks on the first, else zeros.
    window: WindowSums = (0.0,) * 6
    # The tokens of all steps at the start, without padding: those of all ranks on the first, else 0. None on the first
    # if an earlier version of lucid, which did not count them, took some of the steps.
    tokens: int | None = 0
    # On the first rank: the number of this attempt, once it is claimed.
    attempt: int = 0
    # On the first rank: the `versions` at the start. The files of lucid may be replaced while the run goes on.
    software: dict[str, str] = field(default_factory=dict)
    locations: list[RankLocation] = field(default_factory=list)  # of all ranks
    # On the first rank: the newest whole checkpoint of this run.
    checkpoint: Path | None = None

    @property
    def model(self) -> BERTForPreTraining:
        return self.ddp.module

    @cached_property
    def counts(self) -> KeptCounts:
        """What was counted in the corpora; only the first rank counts."""
        return KeptCounts(self.config.run_folder)

    @property
    def hosts(self) -> list[str]:
        """The host of each rank."""
        return [location.host for location in self.locations]

    @property
    def is_first(self) -> bool:
        """Whether this rank is the first, which alone writes and prints."""
        return self.communicator.rank == 0

    @property
    def has_stopped_early(self) -> bool:
        """Whether too many evaluations have brought no smaller held-out loss (`train.patience`)."""
        return patience_has_ended(self.config, self.best)

    def state(self, window: WindowSums, tokens: int | None) -> TrainingState:
        """Return the state for a checkpoint; `window` and `tokens` come from `Window.totals`. All ranks call this."""
        return TrainingState(
            step=self.step,
            samples_consumed=self.samples_consumed,
            optimizer_updates=self.optimizer.updates,
            skipped_steps=self.skipped_steps,
            skipped_in_a_row=self.skipped_in_a_row,
            training_seconds=self.training_seconds,
            window=window,
            corpus=self.corpora.identity,
            tokenizer=self.corpora.tokenizer_hash,
            numerics=numerical_environment(self.model.device),
            config=self.config.as_dict(),
            products=choices_so_far(self.communicator) if times_products(self.ddp) else ProductChoices(),
            inherited=self.inherited.after_training(self.config.data.nsp),
            past=past_of(self.config, self.corpora, self.before) if self.before else [],
            tokens=tokens,
            ranks=self.communicator.size,
            began=self.began,
            software=self.software,
            best=self.best,
            probes=(self.before.probes if self.before else {}) | {each.name: each.digest for each in self.probes},
        )
