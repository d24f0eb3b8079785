"""`lucid plan`: what a run will be, before it is started."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from lucid import kernels
from lucid.cli.doctor.hosts import Host
from lucid.data import Manifest
from lucid.data.manifest import HELD_OUT, MANIFEST_NAME, TRAIN
from lucid.distributed import is_first_rank
from lucid.kernels import threads
from lucid.models.bert.memory import parameter_count
from lucid.training.config import RunConfig, load
from lucid.training.efficiency import encoder_product_rate
from lucid.training.numerics import limit_threads
from lucid.training.plan import checkpoint_bytes, flops_of_sequence, memory_of_rank
from lucid.training.setup import Corpora, find_start, open_corpora
from lucid.training.store import CheckpointStore

_NAMES = len("learning rate  ")


def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace the file's, by dotted key."),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="How many ranks are to share the work.")] = 1,
) -> None:
    """Print what a run will be: samples and epochs, the ranks' shares, memory, checkpoints, and time at least.

    Nothing is trained or written. Exit code 2: the run cannot be started like this, as the settings, the corpus, what
    it starts from or the ranks do not fit together. A corpus or a start that is not there yet is no mistake.

    Examples:

        lucid plan configs/small_cpu.yaml --ranks 2

        lucid plan configs/bert_base_phase1.yaml --ranks 64 train.micro_batch=8
    """
    settings = load(config, overrides or ())
    settings.check_ranks(ranks)
    corpora = open_corpora(settings) if (settings.data.path / MANIFEST_NAME).is_file() else None
    start = _start(settings, corpora)
    if is_first_rank():
        for name, text in [*_samples(settings, corpora), *start, *_ranks(settings, ranks), *_work(settings, ranks)]:
            print(f"{name:{_NAMES}}{text}")


def _samples(config: RunConfig, corpora: Corpora | None) -> Iterator[tuple[str, str]]:
    """Yield what is trained, and on what."""
    model, data, train, optimizer = config.model, config.data, config.train, config.optimizer
    yield (
        "model",
        f"{parameter_count(model):,} parameters: {model.num_hidden_layers} layers, {model.hidden_size} wide, "
        f"{model.num_attention_heads} heads, a vocabulary of {model.vocab_size:,}",
    )
    samples, epochs = train.steps * train.global_batch, ""
    if corpora is None:
        yield "corpus", f"{data.path} is not there yet: lucid prepare makes it"
    else:
        splits, in_epoch = Manifest.read(data.path).splits, corpora.train.samples_per_epoch
        held_out = f"; {splits[HELD_OUT].documents:,} documents held out" if HELD_OUT in splits else ""
        yield (
            "corpus",
            f"{data.path}: {splits[TRAIN].documents:,} documents of {splits[TRAIN].tokens:,} tokens, {in_epoch:,} "
            f"samples an epoch{held_out}",
        )
        epochs = f", {samples / in_epoch:,.1f} epochs"
    kind = "packed rows" if data.packing else "sequences"
    time = f", or {train.max_hours:g} hours" if train.max_hours is not None else ""
    yield (
        "training",
        f"{train.steps:,} steps of {train.global_batch:,} {kind} of {data.sequence_length} tokens: "
        f"{samples:,} in all{epochs}{time}",
    )
    rise = f"rises to {optimizer.learning_rate:g} in {optimizer.warmup_steps:,} steps"
    yield (
        "learning rate",
        f"{rise if optimizer.warmup_steps else f'begins at {optimizer.learning_rate:g}'}, and falls to "
        f"{optimizer.final_learning_rate:g} at the end",
    )


def _start(config: RunConfig, corpora: Corpora | None) -> list[tuple[str, str]]:
    """Return what the run starts from; nothing for new weights."""
    given = config.initial_checkpoint or config.initial_model
    if given is not None and not given.exists():
        return [("start", f"{given} is not there yet")]
    if corpora is None:
        return []
    _, said = find_start(config, corpora, CheckpointStore(config.run_folder / "checkpoints"))
    return [("start", sentence) for sentence in said]


def _ranks(config: RunConfig, ranks: int) -> Iterator[tuple[str, str]]:
    """Yield what each rank has to do, and what it takes for that."""
    train, share, at_once = config.train, config.train.global_batch // ranks, config.sequences_at_once(ranks)
    count = -(-share // at_once)
    micro_batches = f", in {count} micro-batches of {at_once}" if count > 1 else ""
    yield "ranks", f"{ranks}, with {share:,} of each step{micro_batches}"
    memory, checkpoint = memory_of_rank(config, ranks), checkpoint_bytes(config)
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items())
    most, more = sum(memory.values()), f"the first, for checkpoints, {_size(checkpoint)} more"
    if train.device == "cuda":
        yield "memory", f"about {_size(most)} of each GPU's, beside CUDA's own: {parts}; and of its host's, {more}"
    else:
        free = Host.here(1).memory_free
        yield "memory", f"about {_size(most)} a rank: {parts}; {more}"
        yield "", f"{_size(free)} are free here, enough for {max(0, free - checkpoint) // most:,} such ranks"
    folder = next(folder for folder in (config.run_folder, *config.run_folder.absolute().parents) if folder.exists())
    yield (
        "checkpoints",
        f"{_size(checkpoint)} each, every {train.checkpoint_every:,} steps and at the end; the newest "
        f"{train.keep_checkpoints} are kept in {config.run_folder}, where {_size(shutil.disk_usage(folder).free)} are "
        "free",
    )
    every = f"every {train.evaluate_every:,} steps and at the end" if train.evaluate_every else "at the end"
    yield "evaluation", f"{train.evaluation_samples:,} held-out samples, {every}"


def _work(config: RunConfig, ranks: int) -> Iterator[tuple[str, str]]:
    """Yield how much is to be computed, and the least time for it, at the rate of this process's products."""
    flops = flops_of_sequence(config)
    total = flops * config.train.steps * config.train.global_batch
    work = f"at most {flops / 1e9:,.1f} GFLOP a sequence, {total:.2g} FLOP in all"
    if config.train.device == "cuda":
        yield "work", f"{work}; lucid bench step, on a machine with a GPU, measures the rate of a rank"
        return
    limit_threads(config.threads_per_rank)
    kernels.set_precision(config.train.precision)
    rate = encoder_product_rate(config, ranks, np.zeros(0, np.float32))
    yield "work", work
    yield (
        "time",
        f"about {_duration(total / (rate * ranks))} or more, on ranks with the products of this process: "
        f"{rate / 1e9:,.0f} GFLOP/s on {threads.count()} thread{'s' * (threads.count() != 1)}",
    )


def _size(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count / 1e6:,.0f} MB"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
