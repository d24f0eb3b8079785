"""Finds what a run starts from: its own newest checkpoint, another run's, or a model; checks that it fits."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

from lucid.data import Corpus, load_tokenizer, tokenizer_hash
from lucid.errors import CheckpointError, ConfigError
from lucid.models import BERTConfig
from lucid.models.bert.hub import read_config
from lucid.models.bert.sentence_transformers import read_files
from lucid.models.bert.stored_weights import PARTS, StoredWeights, stored_weights
from lucid.training.checkpoints.best import Best
from lucid.training.checkpoints.checkpoint import Checkpoint, Inherited, Past, TrainingState
from lucid.training.checkpoints.store import CheckpointStore, find_checkpoint
from lucid.training.config import RunConfig, from_dict
from lucid.training.config.sections import WeightedCorpus
from lucid.training.corpora import Corpora
from lucid.training.numerical_environment import numerical_environment


@dataclass(frozen=True)
class Start:
    """What a run starts from: a checkpoint, if any; what it inherits; its best; and messages for the user.

    `is_resumed` says whether the checkpoint is its own.
    """

    checkpoint: Checkpoint | None
    inherited: Inherited
    messages: list[str]
    best: Best | None = None
    is_resumed: bool = False


def find_start(config: RunConfig, corpora: Corpora, store: CheckpointStore, at: int | None = None) -> Start:
    """Find what a run of `config` starts from: its newest checkpoint, the one of step `at`, or its beginning (0).

    Reads no weights. Raises a `LucidError` if the checkpoint, or the initial model, does not fit the settings.
    """
    checkpoint, problems = store.newest() if at is None else (store.at(at), [])
    messages: list[str] = []

    def skip(problem: str) -> None:
        messages.append(f"skipped a damaged checkpoint: {problem}")

    for problem in problems:
        skip(problem)
    inherited, best = Inherited(untrained=list(PARTS)), None
    if is_resumed := checkpoint is not None:
        messages.extend(_check_same_run(config, corpora, checkpoint, "choose another run_folder"))
        messages.append(f"resumes from step {checkpoint.state.step:,} ({checkpoint.folder})")
        best = checkpoint.state.best
        if best is not None and best.samples != corpora.held_out_samples:
            messages.append(f"the best held-out loss (step {best.step:,}) was on other samples: it is sought anew")
            best = None
    elif config.branch_from is not None:
        checkpoint = find_checkpoint(config.branch_from, say=skip)
        messages.extend(_check_same_run(config, corpora, checkpoint, "choose another branch_from"))
        messages.append(f"branches from step {checkpoint.state.step:,} of {checkpoint.folder}")
    elif config.initial_checkpoint is not None:
        found = find_checkpoint(config.initial_checkpoint, say=skip)
        checkpoint = _initial_checkpoint(config, corpora, found)
        messages.append(f"starts with the weights and moments of {checkpoint.folder}")
    elif config.initial_model is not None:
        weights, new_tokens = _check_initial_model(config, corpora, config.initial_model)
        files, remarks = read_files(config.initial_model, config.model.max_position_embeddings)
        inherited = Inherited(list(weights.missing), files)
        messages += [f"starts with the weights of {config.initial_model}", *weights.remarks(), *new_tokens, *remarks]
    return Start(checkpoint, checkpoint.state.inherited if checkpoint else inherited, messages, best, is_resumed)


def past_of(now: RunConfig, corpora: Corpora, state: TrainingState) -> list[Past]:
    """Return the past of a run with settings `now` that resumes or branches from `state`, for its checkpoints."""
    if state.step == 0:
        return []
    if state.past is None:
        return [state.as_past(known=False)]
    before = from_dict(state.config)
    if (before.sample_settings, state.corpus) == (now.sample_settings, corpora.identity):
        return state.past
    return [*state.past, state.as_past(known=True)]


# Fields of a model's configuration that determine the meaning of its weights.
_SHAPE = {field.name for field in fields(BERTConfig)} - {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
}


def _check_initial_model(config: RunConfig, corpora: Corpora, folder: Path) -> tuple[StoredWeights, list[str]]:
    """Return the weights in `folder`, and a sentence if the run's vocabulary has more tokens than theirs."""
    check_tokenizer(folder, corpora.train.samplers[0].corpus)
    given = read_config(folder)
    weights = stored_weights(folder, given)
    # A larger vocabulary may be padded.
    other = _shape_difference(given, config.model, _SHAPE - {"vocab_size"})
    if other:
        raise ConfigError(f"initial_model: {folder} has another shape than the section model: {other}")
    if (added := config.model.vocab_size - given.vocab_size) <= 0:
        return weights, []
    return weights, [f"{folder} has {given.vocab_size:,} tokens: the rows of {added:,} more are newly initialised"]


def _initial_checkpoint(config: RunConfig, corpora: Corpora, checkpoint: Checkpoint) -> Checkpoint:
    """Return another run's checkpoint at step 0 of this run. Raises `CheckpointError` if it does not fit."""
    _check_fits(config, checkpoint, "choose another initial_checkpoint, or restore the settings")
    if checkpoint.state.tokenizer != corpora.tokenizer_hash:
        raise CheckpointError(
            f"{checkpoint.folder} was trained with another tokenizer than {config.data.folders[0]} has: prepare "
            f"the text with lucid prepare --tokenizer {checkpoint.folder}"
        )
    return replace(checkpoint, state=checkpoint.state.at_the_beginning())


def check_tokenizer(folder: Path, corpus: Corpus) -> None:
    """Raise `ConfigError` if the tokenizer in the model's `folder`, if any, is not that of `corpus`."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        return
    if tokenizer_hash(load_tokenizer(folder)) != corpus.tokenizer_hash:
        raise ConfigError(
            f"{corpus.folder} was prepared with another tokenizer than {folder} has: "
            f"prepare the text with lucid prepare --tokenizer {folder}"
        )


def _check_same_run(config: RunConfig, corpora: Corpora, checkpoint: Checkpoint, or_else: str) -> list[str]:
    """Return sentences about changed settings. Raises `CheckpointError` for changes that make it another run.

    These are another model or optimizer, a step beyond the last, and a corpus, tokenizer or seed that has changed
    without being named in `train.accept_changed`. The message says what to do, `or_else` first.
    """
    advice = f"{or_else}, or restore the settings"
    before, now, state = _check_fits(config, checkpoint, advice), config, checkpoint.state
    if state.step > now.train.steps:
        raise CheckpointError(
            f"{checkpoint.folder} is at step {state.step}, beyond train.steps={now.train.steps}: {advice}"
        )
    changed = {}
    if state.corpus != corpora.identity:
        changed["corpus"] = _other_corpus(now)
    if state.tokenizer != corpora.tokenizer_hash:
        changed["tokenizer"] = f"another tokenizer than {now.data.folders[0]} has"
    if before.train.seed != now.train.seed:
        changed["seed"] = f"train.seed={before.train.seed}"
    words = f"{checkpoint.folder} was trained with {' and '.join(changed.values())}"
    if not changed.keys() <= set(now.train.accept_changed):
        raise CheckpointError(f"{words}: {advice}, or set train.accept_changed to [{', '.join(changed)}]")
    accepted = [f"{words}, which is accepted"] if changed else []
    return accepted + _other_changes(before, now)


def _other_corpus(now: RunConfig) -> str:
    """Return words for the corpus of a checkpoint, which is not the one in the settings."""
    corpora = now.data.corpora
    if len(corpora) == 1:
        return f"another corpus than {corpora[0].path}"
    return f"other corpora or weights than {', '.join(map(repr, corpora))}"


def _check_fits(now: RunConfig, checkpoint: Checkpoint, advice: str) -> RunConfig:
    """Return the settings of a checkpoint. Raises `CheckpointError` if its model or optimizer is another one."""
    before = from_dict(checkpoint.state.config)
    other = _shape_difference(before.model, now.model)
    if other:
        raise CheckpointError(f"{checkpoint.folder} was trained with another model ({other}): {advice}")
    if before.optimizer.name != now.optimizer.name:
        raise CheckpointError(f"{checkpoint.folder} was trained with optimizer.name={before.optimizer.name}: {advice}")
    return before


def _shape_difference(one: BERTConfig, other: BERTConfig, names: set[str] = _SHAPE) -> str:
    return difference(*({name: getattr(model, name) for name in names} for model in (one, other)))


def check_same_shape(one: BERTConfig, other: BERTConfig, which: str) -> None:
    """Raise `CheckpointError` unless weights of these two models mean the same; `which` names them for users."""
    if what := _shape_difference(one, other):
        raise CheckpointError(f"{which} have different shapes: {what}")


def _other_changes(before: RunConfig, now: RunConfig) -> list[str]:
    """Return a sentence for each section whose settings have changed."""
    sentences = []
    for section in ("model", "data", "optimizer", "train"):
        # accept_changed itself changes nothing in training.
        settings = [vars(getattr(run, section)) | {"accept_changed": ()} for run in (now, before)]
        if settings[0] != settings[1]:
            sentences.append(f"settings of {section} changed: {difference(*settings)}")
    return sentences


def changed_environment(now: RunConfig, state: TrainingState, device: str) -> list[str]:
    """Return a sentence if the exact reduction may give other bits than before, because of another environment."""
    changed = difference(numerical_environment(device), state.numerics)
    if now.train.reduction == "fast" or not changed:
        return []
    return [f"the bits of the results may differ from here on, by {changed}"]


def difference(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """Return what differs between two settings: "name VALUE instead of VALUE", joined by commas, or ""."""
    names = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
    return ", ".join(
        f"{name} {_as_written(one.get(name))} instead of {_as_written(other.get(name))}" for name in sorted(names)
    )


def _as_written(value: object) -> str:
    """Return a value as users write it in the settings."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_as_written, value))}]"
        case WeightedCorpus():
            return repr(value)
    return str(value)
