"""Makes what runs the micro-batches of a run, and tries their size if lucid has chosen it (`micro_batch_size.py`)."""

import numpy as np

from lucid import random
from lucid.backend import CPU
from lucid.data import Batch
from lucid.distributed import agreed
from lucid.errors import ConfigError, TrainingError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.training.estimates import masked_tokens, memory
from lucid.training.graphs import GraphedMicroBatches
from lucid.training.micro_batch_size import least
from lucid.training.micro_batches import LocalBatch, MicroBatches, StepInputs
from lucid.training.setup import Run

_NO_ROOM = (
    "a rank has no memory for a single sequence: set train.recompute to layer, start fewer ranks on a host, or lower "
    "data.sequence_length or the size of the model"
)


def micro_batches_of(run: Run) -> MicroBatches:
    """Return the object that runs the micro-batches of `run` on its device. All ranks call this.

    If lucid has chosen their size, each rank tries one first. While it does not fit into the memory of any rank, all
    ranks halve it, in the settings of `run`; nothing else changes. Raises an agreed `ConfigError` if a single sequence
    does not fit.
    """
    if not run.tries_micro_batch:
        return _made(run)
    while True:
        size = run.config.largest_micro_batch(run.communicator.size)
        try:
            made = _made(run)
            _try(run, made, size)
            fitting = size
        except (MemoryError, TrainingError):
            fitting = size // 2
        fits_all = least(run.communicator, fitting)
        if fits_all == size:
            length = run.config.data.sequence_length
            run.messages.append(f"train.micro_batch is auto: {size:,} at once, {size * length:,} tokens at most")
            return made
        if fits_all == 0:
            raise agreed(ConfigError(_NO_ROOM))
        run.config = run.config.with_micro_batch(fits_all)


def _made(run: Run) -> MicroBatches:
    train = run.config.train
    if run.model.device == CPU:
        return MicroBatches(run.ddp, train.seed)
    # The exact reduction lets each backward write to another buffer.
    graphs = train.cuda_graphs and train.reduction == "fast"
    activations = memory(run.config, run.communicator.size).rank["activations"]
    return GraphedMicroBatches(run.ddp, train.seed, run.communicator, graphs, activations)


def _try(run: Run, micro_batches: MicroBatches, size: int) -> None:
    """Run forward and backward of `size` sequences of the full length. Their gradients are forgotten."""
    config, length = run.config, run.config.data.sequence_length
    token = run.corpora.train.samplers[0].corpus.special_tokens.mask
    ids, ones = np.full((size, length), token, np.int32), np.ones((size, length), np.int32)
    labels = np.full_like(ids, IGNORE_INDEX)
    labels[:, : masked_tokens(config, config.masking_rate.largest)] = token
    pairs = np.full(size, 0 if config.data.nsp else IGNORE_INDEX, np.int32)
    batch = Batch(ids, ones, np.zeros_like(ids), labels, pairs, np.arange(size))
    (part,) = LocalBatch.split(batch, size).micro_batches
    inputs = StepInputs(random.Coordinates.of(config.train.seed, run.step, part.samples), 1.0, 1.0)
    run.ddp.zero_grad()
    try:
        with run.ddp.accumulate():
            micro_batches.run(part.rows, inputs, (True, False))
    finally:
        run.ddp.zero_grad()
