"""From a run's settings to its parts: device, corpora, model, optimizer, and the checkpoint it goes on from.

Each rank opens the corpus; the first alone reads the model and the checkpoint, and the others get them from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from lucid import backend, kernels, random
from lucid.backend import CPU, Array
from lucid.data import HELD_OUT, Corpus, Manifest, Sampler, SamplerSettings, load_tokenizer, tokenizer_hash
from lucid.distributed import Communicator, DistributedDataParallel, Group, all_or_none, choose
from lucid.errors import CheckpointError, ConfigError
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.models.bert.hub import check_size, read_config
from lucid.optim import LAMB, AdamW
from lucid.optim.moments import MomentOptimizer
from lucid.training.checkpoint import Checkpoint, TrainingState
from lucid.training.config import DataSettings, RunConfig, from_dict
from lucid.training.evaluation import frequency_losses
from lucid.training.metrics import WindowSums
from lucid.training.numerics import numerics
from lucid.training.store import CheckpointStore, find_checkpoint


@dataclass(frozen=True)
class Corpora:
    """What is read: the samples to train on, those held out (if any), and the losses by token frequency."""

    identity: str
    tokenizer_hash: str
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
        """Return the place in the run, for a checkpoint; `window` as of `metrics.Window.totals`."""
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
            numerics=numerics(self.model.device),
            config=self.config.as_dict(),
        )


def communicator_of(config: RunConfig, group: Group) -> Communicator:
    """Take the device that `config` asks for, and return what carries gradients between those of `group`'s ranks.

    All ranks call this; a `LucidError` on one is raised on all.
    """
    return choose(group, config.distributed.backend, config.distributed.wire_dtype, config.train.device)


def open_run(config: RunConfig, communicator: Communicator) -> Run:
    """Open everything that `config` names, on the device of `communicator`.

    All ranks call this; a `LucidError` on one is raised on all.
    """
    store, device = CheckpointStore(config.run_folder / "checkpoints"), communicator.device
    messages = [communicator.remark] if communicator.remark else []

    def open_alone() -> tuple[Corpora, BERTForPreTraining, Checkpoint | None]:
        config.check_ranks(communicator.size)
        if communicator.rank == 0:
            # First, so that what was altered is named as such, rather than by what it leads to.
            Corpus.open(config.data.path).verify()
        # Kernels for the CPU are loaded, or even compiled, here and not in the first step.
        remark = kernels.set_precision(config.train.precision) if device == CPU else _choose_attention(config)
        if remark is not None:
            messages.append(remark)
        corpora = open_corpora(config)
        random.manual_seed(config.train.seed)
        if communicator.rank > 0:
            return corpora, BERTForPreTraining(config.model), None
        checkpoint, said = find_start(config, corpora, store)
        messages.extend(said)
        if checkpoint is None and config.initial_model is not None:
            return corpora, _initial_model(config, config.initial_model), None
        # What begins with another run's weights has no bits of its own yet.
        if checkpoint is not None and checkpoint.state.step > 0:
            messages.extend(_changed_numerics(config, checkpoint.state, device))
        return corpora, BERTForPreTraining(config.model), checkpoint

    corpora, model, checkpoint = all_or_none(communicator, open_alone)
    model.to(device).bert.encoder.recompute(config.train.recompute)
    optimizer_settings = config.optimizer
    ddp = DistributedDataParallel(
        model,
        communicator,
        config.distributed.bucket_megabytes,
        config.exact_micro_batches(communicator.size),
        sharded=optimizer_settings.sharded,
        rounded=device != CPU and config.train.precision == "bfloat16",
    )
    optimizer = {"adamw": AdamW, "lamb": LAMB}[optimizer_settings.name](
        ddp.flat,
        betas=optimizer_settings.betas,
        epsilon=optimizer_settings.epsilon,
        weight_decay=optimizer_settings.weight_decay,
        bias_correction=optimizer_settings.bias_correction,
    )
    run = Run(config, communicator, corpora, ddp, optimizer, store, messages)
    _restore(run, checkpoint)
    # What was read of a checkpoint is three times the weights.
    backend.return_freed_memory()
    return run


def find_start(config: RunConfig, corpora: Corpora, store: CheckpointStore) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint that a run of `config` starts from, if any, and what there is to say of the start.

    Whatever it starts from has to fit, or else a `LucidError` says how it does not. No weights are read.
    """
    checkpoint, problems = store.newest()
    said = [f"passed over a checkpoint: {problem}" for problem in problems]
    if checkpoint is not None:
        said.extend(_check_same_run(config, corpora, checkpoint))
        said.append(f"goes on from step {checkpoint.state.step:,} ({checkpoint.folder})")
    elif config.initial_checkpoint is not None:
        checkpoint = _initial_checkpoint(config, corpora, find_checkpoint(config.initial_checkpoint))
        said.append(f"starts with the weights and moments of {checkpoint.folder}")
    elif config.initial_model is not None:
        _check_initial_model(config, config.initial_model)
        said.append(f"starts with the weights of {config.initial_model}")
    return checkpoint, said


def _choose_attention(config: RunConfig) -> str | None:
    """Have attention on a GPU computed as `config` says; return what `kernels.set_attention` has to say of it."""
    drops = config.model.attention_probs_dropout_prob > 0
    asked = config.train.attention
    return kernels.set_attention("own" if asked == "auto" and drops else asked)


def open_corpora(config: RunConfig) -> Corpora:
    """Open the prepared corpus that `config` names, and check that it fits the model."""
    folder = config.data.path
    corpus = Corpus.open(folder)
    if config.model.vocab_size < corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer of {folder} has {corpus.vocab_size} "
            f"tokens: set model.vocab_size={corpus.vocab_size}, or more"
        )
    if config.model.pad_token_id != corpus.special_tokens.pad:
        raise ConfigError(
            f"model.pad_token_id is {config.model.pad_token_id}, but [PAD] is {corpus.special_tokens.pad} in the "
            f"tokenizer of {folder}: set model.pad_token_id={corpus.special_tokens.pad}"
        )
    held_out = None
    if HELD_OUT in Manifest.read(folder).splits:
        held_out = Sampler(Corpus.open(folder, HELD_OUT), evaluation_settings(config.data), config.train.seed)
    elif config.train.evaluate_every:
        raise ConfigError(
            f"train.evaluate_every is set, but {folder} has no held-out documents: see prepare --held-out"
        )
    return Corpora(
        identity=corpus.identity,
        tokenizer_hash=corpus.tokenizer_hash,
        train=Sampler(corpus, sampler_settings(config.data), config.train.seed),
        held_out=held_out,
        token_losses=frequency_losses(corpus) if held_out is not None else np.zeros(0),
        tokenizer_files=corpus.tokenizer_files,
    )


def sampler_settings(data: DataSettings) -> SamplerSettings:
    """Return how samples are made, by the settings of the same names."""
    return SamplerSettings(**{part.name: getattr(data, part.name) for part in fields(SamplerSettings)})


def evaluation_settings(data: DataSettings) -> SamplerSettings:
    """Return how held-out samples are made: masked as BERT's are, whatever training does, so that runs compare."""
    return SamplerSettings(sequence_length=data.sequence_length, nsp=data.nsp)


# Of two models, what makes their weights mean different things.
_SHAPE = {field.name for field in fields(BERTConfig)} - {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
}


def _check_initial_model(config: RunConfig, folder: Path) -> None:
    check_tokenizer(folder, Corpus.open(config.data.path))
    given = read_config(folder)
    check_size(folder, given)
    # A larger vocabulary may be padding.
    difference = _shape_difference(given, config.model, _SHAPE - {"vocab_size"})
    if difference:
        raise ConfigError(f"initial_model: {folder} has another shape than the section model: {difference}")


def _initial_model(config: RunConfig, folder: Path) -> BERTForPreTraining:
    model = BERTForPreTraining(config.model)
    given = BERTForPreTraining.from_pretrained(folder)
    model.load_state_dict(given.with_vocabulary(config.model.vocab_size).state_dict())
    return model


def _initial_checkpoint(config: RunConfig, corpora: Corpora, checkpoint: Checkpoint) -> Checkpoint:
    """Return the weights and moments of another run's checkpoint, at the beginning of this run, if they fit it."""
    _check_fits(config, checkpoint, "choose another initial_checkpoint, or take the settings back")
    if checkpoint.state.tokenizer != corpora.tokenizer_hash:
        raise CheckpointError(
            f"{checkpoint.folder} was trained with another tokenizer than that of {config.data.path}: prepare the text "
            f"with lucid prepare --tokenizer {checkpoint.folder}"
        )
    return replace(checkpoint, state=checkpoint.state.at_the_beginning())


def check_tokenizer(folder: Path, corpus: Corpus) -> None:
    """Raise `ConfigError` if a tokenizer lies beside the model in `folder`, and `corpus` was made with another."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        return
    if tokenizer_hash(load_tokenizer(folder)) != corpus.tokenizer_hash:
        raise ConfigError(
            f"{corpus.folder} was prepared with another tokenizer than that of {folder}: "
            f"prepare the text with lucid prepare --tokenizer {folder}"
        )


def _check_same_run(config: RunConfig, corpora: Corpora, checkpoint: Checkpoint) -> list[str]:
    """Refuse to go on as another run; return what else has changed, in words.

    Another model or optimizer is never taken, nor a step beyond the last; another corpus, tokenizer or seed only if
    `train.accept_changed` names it.
    """
    advice = "choose another run_folder, or take the settings back"
    before, now, state = _check_fits(config, checkpoint, advice), config, checkpoint.state
    if state.step > now.train.steps:
        raise CheckpointError(
            f"{checkpoint.folder} is at step {state.step}, beyond train.steps={now.train.steps}: {advice}"
        )
    changed = {}
    if state.corpus != corpora.identity:
        changed["corpus"] = f"another corpus than {now.data.path}"
    if state.tokenizer != corpora.tokenizer_hash:
        changed["tokenizer"] = f"another tokenizer than that of {now.data.path}"
    if before.train.seed != now.train.seed:
        changed["seed"] = f"train.seed={before.train.seed}"
    words = f"{checkpoint.folder} was trained with {' and '.join(changed.values())}"
    if not changed.keys() <= set(now.train.accept_changed):
        raise CheckpointError(f"{words}: {advice}, or set train.accept_changed to [{', '.join(changed)}]")
    accepted = [f"{words}, which is accepted"] if changed else []
    return accepted + _other_changes(before, now)


def _check_fits(now: RunConfig, checkpoint: Checkpoint, advice: str) -> RunConfig:
    """Refuse weights and moments that mean something else now; return the settings that they were trained with."""
    before = from_dict(checkpoint.state.config)
    difference = _shape_difference(before.model, now.model)
    if difference:
        raise CheckpointError(f"{checkpoint.folder} is of another model ({difference}): {advice}")
    if before.optimizer.name != now.optimizer.name:
        raise CheckpointError(f"{checkpoint.folder} was trained with optimizer.name={before.optimizer.name}: {advice}")
    return before


def _shape_difference(one: BERTConfig, other: BERTConfig, names: set[str] = _SHAPE) -> str:
    return _difference(*({name: getattr(model, name) for name in names} for model in (one, other)))


def _other_changes(before: RunConfig, now: RunConfig) -> list[str]:
    """Return a sentence for each section of settings that changed."""
    sentences = []
    for section in ("model", "data", "optimizer", "train"):
        # What may change is no change of what is trained.
        settings = [vars(getattr(run, section)) | {"accept_changed": ()} for run in (now, before)]
        if settings[0] != settings[1]:
            sentences.append(f"settings of {section} changed: {_difference(*settings)}")
    return sentences


def _changed_numerics(now: RunConfig, state: TrainingState, device: str) -> list[str]:
    """Return a sentence if the exact reduction can no longer give the bits that it would have given."""
    difference = _difference(numerics(device), state.numerics)
    if now.train.reduction == "fast" or not difference:
        return []
    return [f"the bits of the results may differ from here on, by {difference}"]


def _difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return ", ".join(f"{name} {one.get(name)} instead of {other.get(name)}" for name in sorted(names))


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
