"""Opens a run from its settings: device, corpus, model, optimizer, and the checkpoint from which it resumes.

Each rank opens the corpus. The first rank alone reads the model or the checkpoint, and sends them to the others.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from lucid import backend, kernels, random
from lucid.backend import CPU, Array
from lucid.data import Corpus
from lucid.distributed import Communicator, DistributedDataParallel, ProcessGroup, all_or_none, choose
from lucid.distributed.health.software import versions
from lucid.models import BERTForPreTraining
from lucid.nn import init
from lucid.optim import LAMB, AdamW
from lucid.optim.moments import MomentOptimizer
from lucid.optim.partition import Partition
from lucid.training.checkpoints.best import of_first_rank
from lucid.training.checkpoints.checkpoint import Checkpoint, Inherited
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.config import RunConfig
from lucid.training.config.sections import AUTO
from lucid.training.corpora import Corpora, check_same_corpora, open_corpora
from lucid.training.estimates import check_run_fits
from lucid.training.micro_batch_size import with_chosen_micro_batch
from lucid.training.probes import open_probes
from lucid.training.product_choices import take_first_ranks_choices, times_products
from lucid.training.run_folder import check_run_folder
from lucid.training.run_on_rank import Run
from lucid.training.start import Start, changed_environment, find_start
from lucid.training.trial import tried


def communicator_of(config: RunConfig, group: ProcessGroup) -> Communicator:
    """Choose the device of this rank, and return the communicator between the devices of all ranks of `group`.

    All ranks call this; a `LucidError` on one rank is raised on all.
    """
    return choose(group, config.distributed.backend, config.distributed.wire_dtype, config.train.device)


def open_run(config: RunConfig, communicator: Communicator, at: int | None = None) -> Run:
    """Open the run of `config` on the device of `communicator`, at its newest checkpoint.

    `at` asks for its checkpoint of that step instead, or with 0 for its beginning; the run is then only read. All ranks
    call this; a `LucidError` on one rank is raised on all.
    """
    store, device = CheckpointStore(config.run_folder / "checkpoints"), communicator.device
    is_to_try = config.train.micro_batch == AUTO
    if is_to_try:
        newest = all_or_none(communicator, lambda: store.newest_state() if communicator.rank == 0 else None)
        config = with_chosen_micro_batch(config, communicator, newest)
    corpora, model, start = all_or_none(communicator, lambda: _open_alone(config, communicator, store, at))
    check_same_corpora(corpora, communicator)
    checkpoint = start.checkpoint
    before = checkpoint.state if checkpoint else None
    probes, probe_messages = open_probes(
        config, corpora, communicator, start.is_resumed, before.probes if before is not None else {}
    )
    model.to(device).bert.encoder.recompute(config.train.recompute)
    ddp = DistributedDataParallel(
        model,
        communicator,
        config.distributed.bucket_megabytes,
        config.shared_by(communicator.size).exact_micro_batches,
        sharded=config.optimizer.sharded,
        bfloat16_copy=config.train.precision == "bfloat16",
    )
    if times_products(ddp):
        take_first_ranks_choices(communicator, checkpoint.state.products if checkpoint else None)
    optimizer = _optimizer(config, ddp.partition)
    run = Run(
        config,
        communicator,
        corpora,
        ddp,
        optimizer,
        store,
        inherited=start.inherited,
        probes=probes,
        before=before,
        messages=start.messages + probe_messages,
        software=versions() if communicator.rank == 0 else {},
    )
    _restore(run, checkpoint)
    run.best = of_first_rank(communicator, start.best, corpora.held_out_samples)
    # Reading a checkpoint took three times the memory of the weights.
    backend.return_freed_memory()
    if is_to_try:
        run.config, run.micro_batches = tried(config, ddp, corpora, communicator)
        size = run.config.shared_by(communicator.size).largest_micro_batch
        tokens = size * config.data.sequence_length
        run.messages.append(f"train.micro_batch is auto: {size:,} at once, {tokens:,} tokens at most")
    return run


def _open_alone(
    config: RunConfig, communicator: Communicator, store: CheckpointStore, at: int | None = None
) -> tuple[Corpora, BERTForPreTraining, Start]:
    """Return what a rank opens without the others.

    The first rank alone has the checkpoint to start from, and the initial weights.
    """
    config.shared_by(communicator.size).check()
    check_run_fits(config, communicator)
    if communicator.rank == 0:
        if at is None:
            check_run_folder(config.run_folder)
        # Before the rest, so that a damaged corpus is reported as such, and not by a later error that it causes.
        for folder in config.folders:
            Corpus.open(folder).verify()
    remark = None
    if communicator.device == CPU:
        remark = kernels.set_precision(config.train.precision)
        kernels.of(np.zeros(0, np.float32))  # loads or compiles the kernels now, and not in the first step
    else:
        kernels.check_gpu_kernels()
    corpora = open_corpora(config)
    messages = [text for text in (communicator.remark, remark, corpora.remark, *corpora.other_splits) if text]
    if config.masking_rate.largest == 0:
        messages.append(f"data.mlm_probability is 0: no token is predicted, so {_without_masks(config)}")
    if config.train.audit_every is not None and communicator.size == 1:
        messages.append("train.audit_every is set, but a single rank has no other one that could audit it")
    random.manual_seed(config.train.seed)
    if communicator.rank > 0:
        return corpora, _overwritten_model(config), Start(None, Inherited(), messages)
    start = find_start(config, corpora, store, at)
    start = replace(start, messages=messages + start.messages)
    checkpoint = start.checkpoint
    if checkpoint is None and config.initial_model is not None:
        return corpora, _initial_model(config, config.initial_model), start
    # A run that starts at step 0 with another run's weights has computed nothing yet.
    if checkpoint is not None and checkpoint.state.step > 0:
        start.messages.extend(changed_environment(config, checkpoint.state, communicator.device))
    model = BERTForPreTraining(config.model) if checkpoint is None else _overwritten_model(config)
    return corpora, model, start


def _without_masks(config: RunConfig) -> str:
    return "next-sentence prediction alone is trained" if config.data.nsp else "nothing is trained"


def _overwritten_model(config: RunConfig) -> BERTForPreTraining:
    """Return a model without initial weights: the first rank, a checkpoint or another model overwrites them."""
    with init.without_draws():
        return BERTForPreTraining(config.model)


def _initial_model(config: RunConfig, folder: Path) -> BERTForPreTraining:
    model = _overwritten_model(config)
    given, _ = BERTForPreTraining.read(folder)
    model.load_state_dict(given.with_vocabulary(config.model.vocab_size).state_dict())
    return model


def _optimizer(config: RunConfig, partition: Partition) -> MomentOptimizer:
    settings = config.optimizer
    return {"adamw": AdamW, "lamb": LAMB}[settings.name](
        partition,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        bias_correction=settings.bias_correction,
    )


def _restore(run: Run, checkpoint: Checkpoint | None) -> None:
    """Set weights, moments and state on all ranks to those of the first rank's checkpoint, if it has one."""
    counters = np.zeros(5, np.int64)
    moments: dict[str, Array] = {}

    def load() -> None:
        if checkpoint is not None:
            moments.update(checkpoint.load(run.model, run.optimizer))
            state = checkpoint.state
            counters[:3] = state.step, state.samples_consumed, state.optimizer_updates
            counters[3:] = state.skipped_steps, state.skipped_in_a_row
            run.window, run.training_seconds, run.tokens = state.window, state.training_seconds, state.tokens
            if checkpoint.folder.parent == run.store.folder:
                run.checkpoint = checkpoint.folder

    all_or_none(run.communicator, load)
    run.communicator.broadcast(run.ddp.flat.values)
    run.communicator.broadcast(counters)
    run.step, run.samples_consumed, updates, run.skipped_steps, run.skipped_in_a_row = counters.tolist()
    run.began = run.step
    if updates:
        run.optimizer.restore(moments, updates)
    run.ddp.flat.round()
