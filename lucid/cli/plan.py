"""`lucid plan`: what a run will be, before it is started."""

import os
import shutil
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import typer

from lucid import kernels
from lucid.analysis.product_limit import encoder_product_rate
from lucid.cli.doctor.hosts import memory as memory_here
from lucid.cli.run_settings import ConfigFile, Overrides
from lucid.data import Manifest
from lucid.data.manifest import HELD_OUT, TRAIN
from lucid.distributed import announced, is_first_rank
from lucid.errors import ConfigError
from lucid.kernels import threads
from lucid.models.bert.memory import parameter_count
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig, load
from lucid.training.corpora import Corpora, open_corpora
from lucid.training.formatting import count, quantity
from lucid.training.numerical_environment import limit_threads
from lucid.training.requirements import checkpoint_bytes, flops_of_sample, memory
from lucid.training.start import find_start

# A line of the plan: what it is about, and what there is to say.
Line = tuple[str, str]
_NAMES = len("learning rate  ")


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="How many ranks are to share the work. Default: as launched.", show_default=False),
    ] = None,
) -> None:
    """Print what a run will be: samples and epochs, the ranks' shares, memory, checkpoints, and work.

    Nothing is trained or written. Exit code 2: the run cannot be started like this, as the settings, the corpus, what
    it starts from or the ranks do not fit together. A corpus or a start that is not there yet is no mistake. Checksums
    of the corpus are left to the start.

    Examples:

        lucid plan configs/small_cpu.yaml --ranks 2

        lucid plan configs/bert_base_phase1.yaml --ranks 8 train.micro_batch=8
    """
    if not is_first_rank():
        return
    settings, launched = load(config, overrides or ()), announced()
    size = ranks or (launched.size if launched else None) or 1
    settings.check_ranks(size)
    corpora = open_corpora(settings) if settings.data.path.exists() else None
    step, start = _start(settings, corpora)
    lines = [
        *_samples(settings, corpora, step),
        *start,
        *_ranks(settings, size),
        _checkpoints(settings),
        _evaluation(settings, corpora),
        *_work(settings, corpora, size, step),
    ]
    for name, text in lines:
        print(f"{name:{_NAMES}}{text}")


def _samples(config: RunConfig, corpora: Corpora | None, step: int) -> Iterator[Line]:
    """Yield what is trained, and on what; the run is at `step`."""
    model, data, train, optimizer = config.model, config.data, config.train, config.optimizer
    layers, heads = count(model.num_hidden_layers, "layer"), count(model.num_attention_heads, "head")
    yield (
        "model",
        f"{parameter_count(model):,} parameters: {layers}, {model.hidden_size} wide, {heads}, a vocabulary of "
        f"{model.vocab_size:,}",
    )
    samples, epochs = train.steps * train.global_batch, ""
    if corpora is None:
        yield "corpus", f"{data.path} is not there yet: lucid prepare makes it"
    else:
        split, in_epoch = Manifest.read(data.path).splits[TRAIN], corpora.train.samples_per_epoch
        epochs = f", {samples / in_epoch:,.1f} epochs of {in_epoch:,}"
        yield "corpus", f"{data.path}: {count(split.tokens, 'token')} in {count(split.documents, 'document')}"
    left = f"; {train.steps - step:,} steps are left" if step else ""
    yield (
        "training",
        f"{count(train.steps, 'step')} of {train.global_batch:,} {config.samples} of {data.sequence_length} tokens: "
        f"{samples:,} in all{epochs}{left}",
    )
    rise = f"rises to {optimizer.learning_rate:g} in {count(optimizer.warmup_steps, 'step')}"
    hours = f", or sooner, after {train.max_hours:g} h of training" if train.max_hours is not None else ""
    yield (
        "learning rate",
        f"{rise if optimizer.warmup_steps else f'begins at {optimizer.learning_rate:g}'}, and falls to "
        f"{optimizer.final_learning_rate:g} at the end{hours}",
    )


def _start(config: RunConfig, corpora: Corpora | None) -> tuple[int, list[Line]]:
    """Return the step that the run is at, and what it starts from; nothing for new weights."""
    store = CheckpointStore(config.run_folder / "checkpoints")
    given = store.folder if store.has_any() else config.initial_checkpoint or config.initial_model
    if given is not None and not given.exists():
        return 0, [("start", f"{given} is not there yet")]
    if corpora is None:
        return 0, [("start", f"{given}; whether it fits shows when the corpus is there")] if given else []
    checkpoint, said = find_start(config, corpora, store)
    return checkpoint.state.step if checkpoint else 0, [("start", sentence) for sentence in said]


def _ranks(config: RunConfig, size: int) -> Iterator[Line]:
    """Yield what each rank has to do, and what it takes for that."""
    share, at_once = config.train.global_batch // size, config.sequences_at_once(size)
    parts = -(-share // at_once)
    exactly = "" if share % at_once == 0 else "at most "
    micro_batches = f", in {parts:,} micro-batches of {exactly}{at_once}" if parts > 1 else ""
    yield "ranks", f"{size:,}, with {share:,} of each step{micro_batches}"
    need = memory(config, size)
    yield "memory", f"about {quantity(need.of_rank, 'B')} a rank{_on(config)}: {_parts(need.rank)}"
    of_host = f", and on each host {_parts(need.host)}" if need.host else ""
    yield "", f"in addition, on the first rank's host {quantity(need.checkpoint, 'B')} for checkpoints{of_host}"
    if config.train.device == "cpu":
        _, free = memory_here()
        yield "", f"{quantity(free, 'B')} are free here: room for {count(need.ranks_within(free), 'such rank')}"


def _on(config: RunConfig) -> str:
    return " of a GPU's, with CUDA's own still to come" if config.train.device == "cuda" else ""


def _parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {quantity(size, 'B')}" for name, size in sizes.items())


def _checkpoints(config: RunConfig) -> Line:
    """Return what is written, and where. Raises `ConfigError` if nothing can be written there."""
    train, folder = config.train, config.run_folder
    found = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not found.is_dir() or not os.access(found, os.W_OK | os.X_OK):
        raise ConfigError(f"run_folder is {folder}, but {found} is no folder that can be written to: choose another")
    size, free = checkpoint_bytes(config), shutil.disk_usage(found).free
    # One more is there while it is written.
    most = size * (min(train.keep_checkpoints, -(-train.steps // train.checkpoint_every)) + 1)
    return (
        "checkpoints",
        f"{quantity(size, 'B')} each, every {count(train.checkpoint_every, 'step')} and at the end; up to "
        f"{quantity(most, 'B')} in {folder}, where {quantity(free, 'B')} are free{': too little' * (most > free)}",
    )


def _evaluation(config: RunConfig, corpora: Corpora | None) -> Line:
    train, samples = config.train, config.train.evaluation_samples
    if corpora is not None:
        if corpora.held_out is None:
            return "evaluation", "none, as the corpus has no held-out documents"
        documents = Manifest.read(config.data.path).splits[HELD_OUT].documents
        samples = min(samples, corpora.held_out.samples_per_epoch)
        text = f"{count(samples, 'sample')} of {count(documents, 'held-out document')}"
    else:
        text = count(samples, "held-out sample")
    every = f"every {count(train.evaluate_every, 'step')} and at the end" if train.evaluate_every else "at the end"
    return "evaluation", f"{text}, {every}"


def _work(config: RunConfig, corpora: Corpora | None, size: int, step: int) -> Iterator[Line]:
    """Yield how much is to be computed, and the time for it at the rate of this process's products."""
    flops = flops_of_sample(config, corpora.train if corpora else None)
    total = flops * (config.train.steps - step) * config.train.global_batch
    full = "" if corpora else " if each is full"
    yield (
        "work",
        f"{quantity(flops, 'FLOP')} for one of the {config.samples}{full}, {quantity(total, 'FLOP')} "
        f"{'to come' if step else 'in all'}",
    )
    if config.train.device == "cuda":
        yield "time", "not known: lucid bench step measures the rate of a rank, on a machine with a GPU"
    elif not memory(config, size).ranks_within(memory_here()[1]):
        yield "time", "not known: a rank has no room here, where its products would be measured"
    else:
        yield "time", _time(config, total, size)


def _time(config: RunConfig, flops: float, size: int) -> str:
    limit_threads(config.threads_per_rank)
    try:
        kernels.set_precision(config.train.precision)
    except ConfigError as error:
        return f"not known here ({error})"
    rate = encoder_product_rate(config, size, np.zeros(0, np.float32))
    each = f"{count(threads.count(), 'thread')} as fast as here, {quantity(rate, 'FLOP/s')} a rank"
    limit = (
        f"; train.max_hours ends it after {config.train.max_hours:g} h" if config.train.max_hours is not None else ""
    )
    return f"at least {_duration(flops / (rate * size))}: the matrix products alone, on {each}{limit}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return count(round(seconds), "second")
