"""What a run will need and do, from its settings and its corpora alone."""

import os
import shutil
from collections.abc import Iterator

import numpy as np

from lucid import kernels
from lucid.analysis.product_limit import encoder_product_rate
from lucid.cli.plan.line import Line
from lucid.cli.plan.loss import loss_at_end
from lucid.data import Manifest, Mixture
from lucid.data.manifest import HELD_OUT, TRAIN
from lucid.errors import ConfigError
from lucid.files import nearest_existing
from lucid.kernels import threads
from lucid.launch.limits import HostMemory
from lucid.models.bert.memory import parameter_count
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig
from lucid.training.config.sections import AUTO
from lucid.training.corpora import Corpora
from lucid.training.end import patience_has_ended
from lucid.training.estimates import Memory, checkpoint_bytes, flops_of_sample, memory, tokens_of_sample
from lucid.training.formatting import count, duration, quantity
from lucid.training.micro_batch_size import chosen_micro_batch
from lucid.training.numerical_environment import limit_threads
from lucid.training.run_folder import check_run_folder
from lucid.training.start import find_start

# BERT saw its corpus 40 times (Devlin et al. 2018).
_MANY_EPOCHS = 40


def outline(settings: RunConfig, corpora: Corpora | None, size: int) -> Iterator[Line]:
    """Yield the lines of a run on `size` ranks. `corpora` is None if some are missing."""
    missing = [folder for folder in settings.folders if not os.path.lexists(folder)]
    step, has_ended, start = _start(settings, corpora)
    settings, chosen = _with_micro_batch(settings, size)
    need = _need(settings, size, corpora)
    yield _model(settings)
    yield from (("corpus", f"{folder} is missing: make it by lucid prepare") for folder in missing)
    yield from _corpora(settings, corpora) if corpora else ()
    yield _training(settings, corpora, step, has_ended)
    yield from _masking(settings)
    yield from _tokens(settings, corpora) if corpora else ()
    yield from start
    yield from () if has_ended else loss_at_end(settings, step)
    yield from _ranks(settings, need, size)
    yield from chosen
    yield _checkpoints(settings)
    yield from () if has_ended else _work(settings, corpora, need, size, step)


def _model(config: RunConfig) -> Line:
    """Return the size and the shape of the model."""
    model = config.model
    layers, heads = count(model.num_hidden_layers, "layer"), count(model.num_attention_heads, "head")
    return (
        "model",
        f"{parameter_count(model):,} parameters: {layers}, {model.hidden_size} wide, {heads}, a vocabulary of "
        f"{model.vocab_size:,}",
    )


def _corpora(config: RunConfig, corpora: Corpora) -> Iterator[Line]:
    """Yield what each corpus holds and, if there are several, how often the run repeats it."""
    for folder in config.folders:
        splits = Manifest.read(folder).splits
        documents = count(splits[TRAIN].documents, "document")
        held_out = f"; {splits[HELD_OUT].documents:,} held out" if HELD_OUT in splits else "; none held out"
        yield "corpus", f"{folder}: {count(splits[TRAIN].tokens, 'token')} in {documents}{held_out}"
        if folder in config.train.evaluate_also:
            yield "", "evaluated only"
        elif len(config.data.corpora) > 1:
            yield "", _use(config, corpora.train, config.data.folders.index(folder))
    if corpora.remark:
        yield "evaluation", corpora.remark
    for sentence in corpora.other_splits:
        yield "splits", sentence


def _use(config: RunConfig, mixture: Mixture, number: int) -> str:
    """Say how a run uses one of several corpora."""
    in_epoch, share = mixture.samplers[number].samples_per_epoch, float(mixture.shares[number])
    samples = share * config.train.steps * config.train.global_batch
    epochs = samples / in_epoch
    return (
        f"weight {config.data.corpora[number].weight:g}: {share:.2%} of the {config.samples}, {samples:,.0f} in all, "
        f"{epochs:,.1f} epochs of {in_epoch:,}{_often(epochs)}"
    )


def _often(epochs: float) -> str:
    """Return the end of a sentence about many epochs."""
    return f"; more than BERT's {_MANY_EPOCHS}, so the model may learn it by heart" if epochs > _MANY_EPOCHS else ""


def _training(config: RunConfig, corpora: Corpora | None, step: int, has_ended: bool) -> Line:
    """Return the length of a run that is at `step`, and may have ended there."""
    data, train = config.data, config.train
    samples, epochs = train.steps * train.global_batch, ""
    if corpora is not None and len(data.corpora) == 1:
        in_epoch = corpora.train.samplers[0].samples_per_epoch
        epochs = f", {samples / in_epoch:,.1f} epochs of {in_epoch:,}{_often(samples / in_epoch)}"
    left = f"; {train.steps - step:,} steps are left" if step else ""
    if has_ended:
        left = f"; train.patience has ended it at step {step:,}"
    return (
        "training",
        f"{count(train.steps, 'step')} of {train.global_batch:,} {config.samples} of {data.sequence_length} tokens: "
        f"{samples:,} in all{epochs}{left}",
    )


def _tokens(config: RunConfig, corpora: Corpora) -> Iterator[Line]:
    """Yield the tokens that a run trains on, relative to the parameters."""
    tokens = tokens_of_sample(corpora.train) * config.train.steps * config.train.global_batch
    different = sum(sampler.corpus.token_count for sampler in corpora.train.samplers)
    parameters = parameter_count(config.model)
    yield (
        "tokens",
        f"about {tokens:,.0f}, {tokens / parameters:,.3g} for each parameter, of {different:,} in the text, "
        f"{different / parameters:,.3g} for each",
    )


def _masking(config: RunConfig) -> Iterator[Line]:
    """Yield how the masking rate changes, if it does."""
    rate = config.masking_rate
    if rate.changes:
        yield "masking", f"{rate.first:.1%} of the tokens at the first step, {rate.last:.1%} at the last"


def _start(config: RunConfig, corpora: Corpora | None) -> tuple[int, bool, list[Line]]:
    """Return the step of the run, whether patience has ended it, and what it starts from; nothing for new weights."""
    store = CheckpointStore(config.run_folder / "checkpoints")
    begins_with = config.branch_from or config.initial_checkpoint or config.initial_model
    source = store.folder if store.has_any() else begins_with
    if source is not None and not source.exists():
        missing = f"{source} is missing; the shape above comes from the section model, or else from BERT-base"
        return 0, False, [("start", missing)]
    if corpora is None:
        return 0, False, [("start", f"{source}; not checked, because the corpus is missing")] if source else []
    start = find_start(config, corpora, store)
    checkpoint, messages = start.checkpoint, start.messages
    has_ended = patience_has_ended(config, start.best)
    return checkpoint.state.step if checkpoint else 0, has_ended, [("start", message) for message in messages]


def _with_micro_batch(config: RunConfig, size: int) -> tuple[RunConfig, list[Line]]:
    """Return the settings with a number for `train.micro_batch: auto`, if this machine tells, and a line about it."""
    if config.train.micro_batch != AUTO:
        return config, []
    if config.train.device == "cuda":
        return config, [("", "train.micro_batch is auto: the start of the run chooses it by the memory of its GPUs")]
    chosen = chosen_micro_batch(config, size, HostMemory.read().free)
    text = f"train.micro_batch is auto: {chosen:,} for a rank alone on this machine; the run chooses by its own hosts"
    return config.with_micro_batch(chosen), [("", text)]


def _need(config: RunConfig, size: int, corpora: Corpora | None) -> Memory:
    """Return the memory of a run on this machine or, if it has no room for all ranks, on several."""
    need = memory(config, size, corpora)
    if config.train.device == "cuda" or need.ranks_within(HostMemory.read().free) >= size:
        return need
    return memory(config, size, corpora, nodes=2)


def _ranks(config: RunConfig, need: Memory, size: int) -> Iterator[Line]:
    """Yield the work and the memory of each rank."""
    shared = config.shared_by(size)
    local_batch, micro_batch = shared.most_samples, shared.largest_micro_batch
    parts = -(-local_batch // micro_batch)
    uneven = "" if local_batch * size == config.train.global_batch else "at most "
    at_most = "at most " if uneven or local_batch % micro_batch else ""
    micro_batches = f", in {uneven}{parts:,} micro-batches of {at_most}{micro_batch}" if parts > 1 else ""
    yield "ranks", f"{size:,}, each with {uneven}{local_batch:,} {config.samples} a step{micro_batches}"
    of_gpu = " of its GPU, besides CUDA's own" if config.train.device == "cuda" else ""
    yield "memory", f"about {quantity(need.of_rank, 'B')} for each rank{of_gpu}: {_by_purpose(need.rank)}"
    of_host = f"; on each host {_by_purpose(need.host)}" if need.host else ""
    yield "", f"on the first rank's host {quantity(need.checkpoint, 'B')} for checkpoints{of_host}"
    if config.train.device == "cpu":
        free = HostMemory.read().free
        yield "", f"this machine has {quantity(free, 'B')} free: room for {count(need.ranks_within(free), 'rank')}"


def _by_purpose(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {quantity(size, 'B')}" for name, size in sizes.items())


def _checkpoints(config: RunConfig) -> Line:
    """Return the sizes of checkpoints. Raises `ConfigError` if `run_folder` cannot be written."""
    train, folder = config.train, config.run_folder
    check_run_folder(folder)
    size, free = checkpoint_bytes(config), shutil.disk_usage(nearest_existing(folder)).free
    forever = train.steps // train.keep_every if train.keep_every else 0
    kept = min(train.keep_checkpoints + forever, -(-train.steps // train.checkpoint_every)) + train.keeps_best
    most = size * (kept + 1)  # while one is written, there is one more
    best = ", at an evaluation better than all before," if train.keeps_best else ""
    return (
        "checkpoints",
        f"{quantity(size, 'B')} each, every {count(train.checkpoint_every, 'step')}{best} and at the end; up to "
        f"{quantity(most, 'B')} in {folder}, where {quantity(free, 'B')} are free{': too little' * (most > free)}",
    )


def _work(config: RunConfig, corpora: Corpora | None, need: Memory, size: int, step: int) -> Iterator[Line]:
    """Yield the FLOPs of the run, and a lower bound of its time on ranks like this process."""
    flops = flops_of_sample(config, corpora.train if corpora else None)
    total = flops * (config.train.steps - step) * config.train.global_batch
    full = "" if corpora else " of full length"
    yield (
        "work",
        f"{quantity(flops, 'FLOP')} for each of the {config.samples}{full}, {quantity(total, 'FLOP')} "
        f"{'to come' if step else 'in all'}",
    )
    if config.train.device == "cuda":
        yield "time", "not known: lucid bench step measures it on a machine with a GPU"
    elif not need.ranks_within(HostMemory.read().free):
        yield "time", "not known: this machine has no room for a rank"
    else:
        yield "time", _time(config, total, size)


def _time(config: RunConfig, flops: float, size: int) -> str:
    limit_threads(config.threads_per_rank)
    try:
        kernels.set_precision(config.train.precision)
    except ConfigError as error:
        return f"not known here ({error})"
    rate = encoder_product_rate(config, size, np.zeros(0, np.float32))
    hours = config.train.max_hours
    end = f"; train.max_hours ends it after {hours:g} h" if hours is not None else ""
    return (
        f"at least {duration(flops / (rate * size))}, for matrix products alone: a rank does "
        f"{quantity(rate, 'FLOP/s')} on {count(threads.count(), 'thread')} here{end}"
    )
