"""The memory and the FLOPs that a run needs, computed from its settings alone."""

import os
from dataclasses import dataclass

import numpy as np

from lucid.backend import gpu_library
from lucid.data import Mixture
from lucid.distributed import Communicator
from lucid.distributed.parallel.exact import buffers_needed
from lucid.errors import ConfigError
from lucid.kernels import onednn
from lucid.launch.limits import HostMemory
from lucid.models.bert.flops import forward_flops
from lucid.models.bert.memory import NumberSizes, activation_bytes, parameter_count
from lucid.training.config import RunConfig
from lucid.training.corpora import Corpora
from lucid.training.formatting import count, quantity

_FLOAT32, _BFLOAT16 = 4, 2
# Python and its libraries, as benchmarks/memory.py measures them.
_PROCESS = 230_000_000
# Bytes of a `LocalBatch` for each slot [b, t] of its batch.
_BYTES_OF_SLOT = 49
# What is certain of them: four arrays of the batch. And Python's objects for a layer of the model.
_LEAST_BYTES_OF_SLOT, _LEAST_BYTES_OF_LAYER = 16, 10_000
# What every run has of each rank's `Memory`, unless ranks share it.
_STATE = {"weights", "gradients", "moments"}
# Samples from which the mean over a corpus is estimated.
_TRIED = 1024


@dataclass(frozen=True)
class Memory:
    """An estimate of the most bytes in use, by purpose: of each rank, once on each host, and for checkpoints.

    Checkpoints take host memory of the first rank. If ranks compute on GPUs, `rank` is GPU memory.
    """

    rank: dict[str, int]
    host: dict[str, int]
    checkpoint: int

    @property
    def of_rank(self) -> int:
        """The sum for each rank."""
        return sum(self.rank.values())

    def ranks_within(self, free: int) -> int:
        """Return how many ranks, including the first, fit into `free` bytes of one host."""
        return max(0, free - self.checkpoint - sum(self.host.values())) // self.of_rank


def memory(config: RunConfig, size: int, corpora: Corpora | None = None, nodes: int = 1) -> Memory:
    """Return the memory that a run on `size` ranks and `nodes` hosts needs, if every sequence has the full length.

    With `corpora`, on a CPU, this includes what each rank remembers of them.
    """
    train, data, parameters = config.train, config.data, parameter_count(config.model)
    shared, is_on_cpu = config.shared_by(size), train.device == "cpu"
    samples = shared.largest_micro_batch
    operand = _BFLOAT16 if train.precision == "bfloat16" else _FLOAT32
    # In bfloat16, a CPU rounds the inputs of products and keeps them; on a GPU all activations are bfloat16.
    sizes = NumberSizes(_FLOAT32 if is_on_cpu else operand, operand, keeps_scores=is_on_cpu)
    buffers, moments = buffers_needed(shared.exact_micro_batches or 1), 2 * _FLOAT32 * parameters
    masked = samples * masked_tokens(config, config.masking_rate.largest)
    rank = {
        "weights": _FLOAT32 * parameters,
        "gradients": buffers * _FLOAT32 * parameters,
        "moments": -(-moments // size) if config.optimizer.sharded else moments,
        "activations": activation_bytes(config.model, sizes, train.recompute, samples, data.sequence_length, masked),
    }
    if train.audit_every is not None and size > 1:
        rank["gradients of an audit"] = _FLOAT32 * parameters
    if operand != _FLOAT32:
        rank["rounded weights"] = operand * parameters
    host = {}
    if is_on_cpu:
        batches = data.prefetch + data.workers + 2
        rank["batches"] = batches * shared.most_samples * data.sequence_length * _BYTES_OF_SLOT
        rank["the process"] = _PROCESS
        if corpora is not None:
            rank["places of samples"] = corpora.index_bytes
        if onednn.is_installed():
            rank["compiled products"] = onednn.MOST_PRODUCTS * onednn.PRODUCT_BYTES
        if config.optimizer.sharded:
            host["weights"] = rank.pop("weights")
            if nodes == 1 and "rounded weights" in rank:
                host["rounded weights"] = rank.pop("rounded weights")
    return Memory(rank, host, checkpoint_bytes(config))


def check_run_fits(config: RunConfig, communicator: Communicator) -> None:
    """Raise `ConfigError` if a run could never fit in the memory of this host or of this rank's GPU.

    Only what every run takes, whatever its corpora are, is counted: no activations, whose size depends on the lengths
    of the texts, no places of samples, and no more than one batch and one buffer of gradients. Each rank counts itself
    and the ranks before it, so the last one of a host counts all.
    """
    ranks, where = communicator.local_rank + 1, os.uname().nodename
    state = {name: size for name, size in memory(config, communicator.size).rank.items() if name in _STATE}
    state["gradients"] = _FLOAT32 * parameter_count(config.model)
    slots = config.shared_by(communicator.size).local_batch * config.data.sequence_length
    batch = {
        "a batch": slots * _LEAST_BYTES_OF_SLOT,
        "the model's layers": config.model.num_hidden_layers * _LEAST_BYTES_OF_LAYER,
    }
    if config.train.device == "cuda":
        _check_fits(state, 1, f"the GPU of {where}", gpu_library().cuda.runtime.memGetInfo()[1])
        state = {}
    _check_fits(state | batch, ranks, where, HostMemory.read().most)


def _check_fits(sizes: dict[str, int], ranks: int, where: str, most: int) -> None:
    needed = ranks * sum(sizes.values())
    if needed > most:
        raise ConfigError(
            f"{count(ranks, 'rank')} on {where} would take at least {quantity(needed, 'B')} of memory "
            f"({_by_purpose(sizes)} each), but there are {quantity(most, 'B')}: start fewer ranks there, or lower "
            "train.global_batch or the size of the model; lucid plan shows more"
        )


def _by_purpose(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {quantity(size, 'B')}" for name, size in sizes.items())


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the approximate size of a checkpoint, on disk and in memory while it is written: weights and moments."""
    return 3 * _FLOAT32 * parameter_count(config.model)


def masked_tokens(config: RunConfig, rate: float) -> int:
    """Return the approximate number of masked tokens in a sequence of the full length at this masking rate."""
    expected = round(rate * config.data.sequence_length)
    return min(config.data.max_predictions or expected, expected)


def tokens_of_sample(mixture: Mixture) -> float:
    """Return the tokens of a sample without padding, a mean over samples of a run."""
    return float(mixture.batch(0, range(_TRIED)).sequence_lengths.sum()) / _TRIED


def flops_of_sample(config: RunConfig, mixture: Mixture | None) -> float:
    """Return the FLOPs of training on a sample, forward and backward, as `models.bert.flops` counts them.

    With `mixture` this is a mean over its samples, without it the FLOPs of a sequence of the full length. Both are at
    the mean masking rate of the run.
    """
    rate = config.masking_rate.mean
    if mixture is None:
        lengths = np.array([config.data.sequence_length])
        return forward_flops(config.model, lengths, masked_tokens(config, rate)).training
    batch = mixture.batch(0, range(_TRIED), rate)
    return forward_flops(config.model, batch.sequence_lengths, batch.masked_tokens).training / _TRIED


def flops_of_samples(config: RunConfig, mixture: Mixture, count: int = _TRIED) -> np.ndarray:
    """Return the FLOPs of training on each of the first `count` samples of a run, forward and backward: [count]."""
    batch = mixture.batch(0, range(count), config.masking_rate.mean)
    samples = (batch.slice(number, number + 1) for number in range(count))
    return np.array(
        [forward_flops(config.model, each.sequence_lengths, each.masked_tokens).training for each in samples]
    )
