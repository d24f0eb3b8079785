"""From a run's settings to its parts: corpora, model, optimizer, and the checkpoint it goes on from.

Each rank opens the corpus; the first alone reads the model and the checkpoint, and the others get them from it.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from lucid import random
from lucid.backend import Array
from lucid.data import HELD_OUT, Corpus, Manifest, Sampler, SamplerSettings
from lucid.distributed import Communicator, DistributedDataParallel, all_or_none
from lucid.errors import CheckpointError, ConfigError
from lucid.models import BERTForPreTraining
from lucid.optim import LAMB, AdamW
from lucid.optim.moments import MomentOptimizer
from lucid.training.checkpoint import Checkpoint, CheckpointStore, TrainingState
from lucid.training.config import DataSettings, RunConfig
from lucid.training.evaluation import frequency_losses


@dataclass(frozen=True)
class Corpora:
    """What is read: the samples to train on, those held out (if any), and the losses by token frequency."""

    identity: str
    train: Sampler
    held_out: Sampler | None
    token_losses: Array
    tokenizer_files: list[Path]


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

    @property
    def model(self) -> BERTForPreTraining:
        return self.ddp.module

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.communicator.rank == 0

    def state(self) -> TrainingState:
        """Return the place in the run, for a checkpoint."""
        return TrainingState(
            step=self.step,
            samples_consumed=self.samples_consumed,
            optimizer_updates=self.optimizer.updates,
            skipped_steps=self.skipped_steps,
            corpus=self.corpora.identity,
            config=self.config.as_dict(),
        )


def open_run(config: RunConfig, communicator: Communicator) -> Run:
    """Open everything that `config` names. All ranks call this; a `LucidError` on one is raised on all."""
    store = CheckpointStore(config.run_folder / "checkpoints", config.train.keep_checkpoints)
    messages: list[str] = []

    def open_alone() -> tuple[Corpora, BERTForPreTraining, Checkpoint | None]:
        config.check_ranks(communicator.size)
        corpora = open_corpora(config)
        random.manual_seed(config.train.seed)
        if communicator.rank > 0:
            return corpora, BERTForPreTraining(config.model), None
        Corpus.open(config.data.path).verify()
        checkpoint, problems = store.newest()
        messages.extend(f"passed over a checkpoint: {problem}" for problem in problems)
        if checkpoint is not None:
            _check_same_run(config, corpora, checkpoint)
        return corpora, _initial_model(config), checkpoint

    corpora, model, checkpoint = all_or_none(communicator, open_alone)
    optimizer_settings = config.optimizer
    ddp = DistributedDataParallel(model, communicator, config.distributed.bucket_megabytes)
    optimizer = {"adamw": AdamW, "lamb": LAMB}[optimizer_settings.name](
        ddp.flat,
        betas=optimizer_settings.betas,
        epsilon=optimizer_settings.epsilon,
        weight_decay=optimizer_settings.weight_decay,
        bias_correction=optimizer_settings.bias_correction,
    )
    run = Run(config, communicator, corpora, ddp, optimizer, store, messages)
    _restore(run, checkpoint)
    return run


def open_corpora(config: RunConfig) -> Corpora:
    """Open the prepared corpus that `config` names, and check that it fits the model."""
    folder = config.data.path
    corpus = Corpus.open(folder)
    if config.model.vocab_size < corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer of {folder} has {corpus.vocab_size} "
            f"tokens: set model.vocab_size={corpus.vocab_size}, or more"
        )
    held_out = None
    if HELD_OUT in Manifest.read(folder).splits:
        held_out = Sampler(Corpus.open(folder, HELD_OUT), evaluation_settings(config.data), config.train.seed)
    return Corpora(
        identity=corpus.identity,
        train=Sampler(corpus, sampler_settings(config.data), config.train.seed),
        held_out=held_out,
        token_losses=frequency_losses(corpus),
        tokenizer_files=sorted((folder / "tokenizer").iterdir()),
    )


def sampler_settings(data: DataSettings) -> SamplerSettings:
    """Return how samples are made, by the settings of the same names."""
    return SamplerSettings(**{part.name: getattr(data, part.name) for part in fields(SamplerSettings)})


def evaluation_settings(data: DataSettings) -> SamplerSettings:
    """Return how held-out samples are made: masked as BERT's are, whatever training does, so that runs compare."""
    return SamplerSettings(sequence_length=data.sequence_length, nsp=data.nsp)


def _initial_model(config: RunConfig) -> BERTForPreTraining:
    if config.initial_model is None:
        return BERTForPreTraining(config.model)
    model = BERTForPreTraining.from_pretrained(config.initial_model)
    if model.config != config.model:
        raise ConfigError(
            f"initial_model: {config.initial_model} has another shape than the section model: "
            f"{_difference(vars(model.config), vars(config.model))}"
        )
    return model


def _check_same_run(config: RunConfig, corpora: Corpora, checkpoint: Checkpoint) -> None:
    """Refuse to go on with another model, corpus or seed: it would be another run."""
    before, now = checkpoint.state.config, config.as_dict()
    advice = "choose another run_folder, or take the settings back"
    if before.get("model") != now["model"]:
        difference = _difference(before.get("model", {}), now["model"])
        raise CheckpointError(f"{checkpoint.folder} is of another model ({difference}): {advice}")
    if checkpoint.state.corpus != corpora.identity:
        raise CheckpointError(f"{checkpoint.folder} was trained on another corpus than {config.data.path}: {advice}")
    seed = before.get("train", {}).get("seed")
    if seed != config.train.seed:
        raise CheckpointError(f"{checkpoint.folder} was trained with train.seed={seed}: {advice}")
    if checkpoint.state.step > config.train.steps:
        raise CheckpointError(
            f"{checkpoint.folder} is at step {checkpoint.state.step}, beyond train.steps={config.train.steps}: {advice}"
        )


def _difference(one: dict[str, object], other: dict[str, object]) -> str:
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {one.get(name)} instead of {other.get(name)}" for name in sorted(names))


def _restore(run: Run, checkpoint: Checkpoint | None) -> None:
    """Bring all ranks to the first rank's checkpoint, or to the beginning."""
    place = np.zeros(4, np.int64)

    def load() -> None:
        if checkpoint is not None:
            checkpoint.load(run.model, run.optimizer)
            state = checkpoint.state
            place[:] = state.step, state.samples_consumed, state.optimizer_updates, state.skipped_steps
            run.messages.append(f"goes on from step {state.step:,} ({checkpoint.folder})")

    all_or_none(run.communicator, load)
    for array in (run.ddp.flat.values, run.optimizer.first_moments, run.optimizer.second_moments, place):
        run.communicator.broadcast(array)
    run.step, run.samples_consumed, run.optimizer.updates, run.skipped_steps = place.tolist()
