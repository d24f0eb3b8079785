"""From a run's settings to its parts: device, corpora, model, optimizer, and the checkpoint it goes on from.

Each rank opens the corpus; the first alone reads the model and the checkpoint, and the others get them from it.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lucid import backend, kernels, random
from lucid.backend import CPU, Array
from lucid.data import Corpus
from lucid.distributed import Communicator, DistributedDataParallel, ProcessGroup, all_or_none, choose
from lucid.models import BERTForPreTraining
from lucid.nn import init
from lucid.optim import LAMB, AdamW
from lucid.optim.moments import MomentOptimizer
from lucid.optim.partition import Partition
from lucid.training.checkpoints.checkpoint import Checkpoint, TrainingState
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig
from lucid.training.corpora import Corpora, open_corpora
from lucid.training.numerical_environment import numerical_environment
from lucid.training.product_choices import ProductChoices, choices_so_far, take_first_ranks_choices, times_products
from lucid.training.start import changed_numerics, find_start
from lucid.training.window import WindowSums


@dataclass
class Run:
    """A run on this rank: its parts, and the place it has come to."""

    config: RunConfig
    communicator: Communicator
    corpora: Corpora
    ddp: DistributedDataParallel[BERTForPreTraining]
    optimizer: MomentOptimizer
    store: CheckpointStore
    messages: list[str] = field(default_factory=list)
    step: int = 0
    samples_consumed: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    # Time in steps, of all starts of the run together; the first rank's counts.
    training_seconds: float = 0.0
    # The sums of the steps that the log has not reported yet; on the first rank those of all.
    window: WindowSums = (0.0,) * 6
    # On the first rank: the newest whole checkpoint of this run.
    checkpoint: Path | None = None

    @property
    def model(self) -> BERTForPreTraining:
        return self.ddp.module

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.communicator.rank == 0

    def state(self, window: WindowSums) -> TrainingState:
        """Return the place in the run, for a checkpoint; `window` as of `metrics.Window.totals`.

        All ranks call this.
        """
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
        )


def communicator_of(config: RunConfig, group: ProcessGroup) -> Communicator:
    """Take the device that `config` asks for, and return what carries gradients between those of `group`'s ranks.

    All ranks call this; a `LucidError` on one is raised on all.
    """
    return choose(group, config.distributed.backend, config.distributed.wire_dtype, config.train.device)


def open_run(config: RunConfig, communicator: Communicator) -> Run:
    """Open everything that `config` names, on the device of `communicator`.

    All ranks call this; a `LucidError` on one is raised on all.
    """
    store, device = CheckpointStore(config.run_folder / "checkpoints"), communicator.device
    corpora, model, checkpoint, messages = all_or_none(communicator, lambda: _open_alone(config, communicator, store))
    model.to(device).bert.encoder.recompute(config.train.recompute)
    ddp = DistributedDataParallel(
        model,
        communicator,
        config.distributed.bucket_megabytes,
        config.exact_micro_batches(communicator.size),
        sharded=config.optimizer.sharded,
        bfloat16_copy=device != CPU and config.train.precision == "bfloat16",
    )
    if times_products(ddp):
        take_first_ranks_choices(communicator, checkpoint.state.products if checkpoint else None)
    run = Run(config, communicator, corpora, ddp, _optimizer(config, ddp.partition), store, messages)
    _restore(run, checkpoint)
    # What was read of a checkpoint is three times the weights.
    backend.return_freed_memory()
    return run


def _open_alone(
    config: RunConfig, communicator: Communicator, store: CheckpointStore
) -> tuple[Corpora, BERTForPreTraining, Checkpoint | None, list[str]]:
    """Return what each rank opens for itself, and what there is to say of it.

    The checkpoint to start from, or the weights of an initial model, are the first rank's alone.
    """
    config.check_ranks(communicator.size)
    if communicator.rank == 0:
        # First, so that what was altered is named as such, rather than by what it leads to.
        Corpus.open(config.data.path).verify()
    remark = None
    if communicator.device == CPU:
        remark = kernels.set_precision(config.train.precision)
        kernels.of(np.zeros(0, np.float32))  # loads them, or even compiles them: here, and not in the first step
    else:
        kernels.check_gpu_kernels()
    messages = [said for said in (communicator.remark, remark) if said]
    corpora = open_corpora(config)
    random.manual_seed(config.train.seed)
    if communicator.rank > 0:
        return corpora, _overwritten_model(config), None, messages
    checkpoint, said = find_start(config, corpora, store)
    messages.extend(said)
    if checkpoint is None and config.initial_model is not None:
        return corpora, _initial_model(config, config.initial_model), None, messages
    # What begins with another run's weights has no bits of its own yet.
    if checkpoint is not None and checkpoint.state.step > 0:
        messages.extend(changed_numerics(config, checkpoint.state, communicator.device))
    model = BERTForPreTraining(config.model) if checkpoint is None else _overwritten_model(config)
    return corpora, model, checkpoint, messages


def _overwritten_model(config: RunConfig) -> BERTForPreTraining:
    """Return a model whose weights are not drawn, as they come from the first rank, a checkpoint or another model."""
    with init.without_draws():
        return BERTForPreTraining(config.model)


def _initial_model(config: RunConfig, folder: Path) -> BERTForPreTraining:
    model = _overwritten_model(config)
    given = BERTForPreTraining.from_pretrained(folder)
    model.load_state_dict(given.with_vocabulary(config.model.vocab_size).state_dict())
    return model


def _optimizer(config: RunConfig, partition: Partition) -> MomentOptimizer:
    settings = config.optimizer
    return {"adamw": AdamW, "lamb": LAMB}[settings.name](
        partition,
        betas=settings.betas,
        epsilon=settings.epsilon,
        weight_decay=settings.weight_decay,
        bias_correction=settings.bias_correction,
    )


def _restore(run: Run, checkpoint: Checkpoint | None) -> None:
    """Bring all ranks to the first rank's checkpoint, or to the beginning."""
    place = np.zeros(5, np.int64)
    moments: dict[str, Array] = {}

    def load() -> None:
        if checkpoint is not None:
            moments.update(checkpoint.load(run.model, run.optimizer))
            state = checkpoint.state
            place[:4] = state.step, state.samples_consumed, state.optimizer_updates, state.skipped_steps
            place[4] = state.skipped_in_a_row
            run.window, run.training_seconds = state.window, state.training_seconds
            if checkpoint.folder.parent == run.store.folder:
                run.checkpoint = checkpoint.folder

    all_or_none(run.communicator, load)
    run.communicator.broadcast(run.ddp.flat.values)
    run.communicator.broadcast(place)
    run.step, run.samples_consumed, updates, run.skipped_steps, run.skipped_in_a_row = place.tolist()
    if updates:
        run.optimizer.restore(moments, updates)
    run.ddp.flat.round()
