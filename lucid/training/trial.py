"""Makes what runs the micro-batches of a run, and tries their size if lucid has chosen it (`micro_batch_size.py`)."""

import numpy as np

from lucid import random
from lucid.backend import CPU
from lucid.data import Batch
from lucid.distributed import Communicator, DistributedDataParallel, agreed
from lucid.errors import ConfigError, TrainingError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.models import BERTForPreTraining
from lucid.training.config import RunConfig
from lucid.training.corpora import Corpora
from lucid.training.estimates import masked_tokens, memory
from lucid.training.graphs import GraphedMicroBatches
from lucid.training.micro_batch_size import least
from lucid.training.micro_batches import LocalBatch, MicroBatches, StepInputs

_NO_ROOM = (
    "a rank has no memory for a single sequence: set train.recompute to layer, start fewer ranks on a host, or lower "
    "data.sequence_length or the size of the model"
)


def micro_batches_of(
    config: RunConfig, ddp: DistributedDataParallel[BERTForPreTraining], communicator: Communicator
) -> MicroBatches:
    """Return the object that runs the micro-batches of a run on the device of its model."""
    train = config.train
    if ddp.module.device == CPU:
        return MicroBatches(ddp, train.seed)
    # The exact reduction lets each backward write to another buffer.
    graphs = train.cuda_graphs and train.reduction == "fast"
    activations = memory(config, communicator.size).rank["activations"]
    return GraphedMicroBatches(ddp, train.seed, communicator, graphs, activations)


def tried(
    config: RunConfig, ddp: DistributedDataParallel[BERTForPreTraining], corpora: Corpora, communicator: Communicator
) -> tuple[RunConfig, MicroBatches]:
    """Return the settings with a micro-batch that each rank has computed, and what has computed it.

    All ranks call this. While the size in `config` does not fit into the memory of any rank, all ranks halve it;
    nothing else changes. Raises an agreed `ConfigError` if a single sequence does not fit.
    """
    while True:
        size = config.shared_by(communicator.size).largest_micro_batch
        made = _fitting(config, ddp, corpora, communicator, size)
        fits_all = least(communicator, size // 2 if made is None else size)
        if made is not None and fits_all == size:
            return config, made
        if fits_all == 0:
            raise agreed(ConfigError(_NO_ROOM))
        made = None  # gives its memory back
        config = config.with_micro_batch(fits_all)


def _fitting(
    config: RunConfig,
    ddp: DistributedDataParallel[BERTForPreTraining],
    corpora: Corpora,
    communicator: Communicator,
    size: int,
) -> MicroBatches | None:
    """Return what has computed a micro-batch of `size` sequences on this rank, None if there was no memory for it."""
    try:
        made = micro_batches_of(config, ddp, communicator)
        _try(config, made, corpora.train.samplers[0].corpus.special_tokens.mask, size)
    except (MemoryError, TrainingError):
        return None
    return made


def _try(config: RunConfig, micro_batches: MicroBatches, token: int, size: int) -> None:
    """Run forward and backward of `size` sequences of the full length. Their gradients are forgotten."""
    ddp, length = micro_batches.ddp, config.data.sequence_length
    ids, ones = np.full((size, length), token, np.int32), np.ones((size, length), np.int32)
    labels = np.full_like(ids, IGNORE_INDEX)
    labels[:, : masked_tokens(config, config.masking_rate.largest)] = token
    pairs = np.full(size, 0 if config.data.nsp else IGNORE_INDEX, np.int32)
    batch = Batch(ids, ones, np.zeros_like(ids), labels, pairs, np.arange(size))
    (part,) = LocalBatch.split(batch, size).micro_batches
    inputs = StepInputs(random.Coordinates.of(config.train.seed, 0, part.samples), 1.0, 1.0)
    ddp.zero_grad()
    try:
        with ddp.accumulate():
            micro_batches.run(part.rows, inputs, (True, False))
    finally:
        ddp.zero_grad()
