"""What a run will take, by its settings: of memory, and of work. Nothing is trained or written for it."""

from dataclasses import dataclass

import numpy as np

from lucid.data import Sampler
from lucid.distributed.parallel.exact import buffers_needed
from lucid.models.bert.flops import forward_flops
from lucid.models.bert.memory import NumberSizes, activation_bytes, parameter_count
from lucid.training.config import RunConfig

_FLOAT32, _BFLOAT16 = 4, 2
# Python and its libraries: what benchmarks/memory.py finds beyond the rest.
_PROCESS = 230_000_000
# A slot of a batch, and what is computed of it, as `share_of` returns them.
_BYTES_OF_SLOT = 49
# Samples that stand for all of a corpus.
_TRIED = 1024


@dataclass(frozen=True)
class Memory:
    """About how many bytes are taken at most, by what they hold: by each rank, once a host, and by the first rank more.

    On a GPU a rank's are of its memory, and the first's are of the host's.
    """

    rank: dict[str, int]
    host: dict[str, int]
    checkpoint: int

    @property
    def of_rank(self) -> int:
        """The bytes of each rank."""
        return sum(self.rank.values())

    def ranks_within(self, free: int) -> int:
        """Return how many ranks, the first among them, have room in `free` bytes of one host."""
        return max(0, free - self.checkpoint - sum(self.host.values())) // self.of_rank


def memory(config: RunConfig, size: int) -> Memory:
    """Return what `size` ranks take. Every sequence counts with its full length."""
    train, data, parameters = config.train, config.data, parameter_count(config.model)
    sequences, is_on_cpu = config.sequences_at_once(size), train.device == "cpu"
    operand = _BFLOAT16 if train.precision == "bfloat16" else _FLOAT32
    # In bfloat16 the CPU rounds what products take, and keeps that; on a GPU all activations are bfloat16.
    sizes = NumberSizes(_FLOAT32 if is_on_cpu else operand, operand, keeps_scores=is_on_cpu)
    buffers, moments = buffers_needed(config.exact_micro_batches(size) or 1), 2 * _FLOAT32 * parameters
    masked = sequences * masked_tokens(config)
    rank = {
        "weights": _FLOAT32 * parameters,
        "gradients": buffers * _FLOAT32 * parameters,
        "moments": -(-moments // size) if config.optimizer.sharded else moments,
        "activations": activation_bytes(config.model, sizes, train.recompute, sequences, data.sequence_length, masked),
    }
    if operand != _FLOAT32:
        rank["rounded weights"] = operand * parameters
    host = {}
    if is_on_cpu:
        batches = data.prefetch + data.workers + 2
        rank["batches"] = batches * train.global_batch // size * data.sequence_length * _BYTES_OF_SLOT
        rank["the process"] = _PROCESS
        if config.optimizer.sharded:
            host["weights"] = rank.pop("weights")
    return Memory(rank, host, checkpoint_bytes(config))


def checkpoint_bytes(config: RunConfig) -> int:
    """Return about how large a checkpoint is, in memory while it is written, and on disk: weights and both moments."""
    return 3 * _FLOAT32 * parameter_count(config.model)


def masked_tokens(config: RunConfig) -> int:
    """Return about how many tokens of a full sequence are predicted."""
    share = round(config.data.mlm_probability * config.data.sequence_length)
    return min(config.data.max_predictions or share, share)


def flops_of_sample(config: RunConfig, sampler: Sampler | None) -> float:
    """Return the FLOPs of training on a sample, forward and backward, as MFU counts them.

    The mean over some samples of `sampler`; without one, those of a sequence of the full length.
    """
    if sampler is None:
        lengths = np.array([config.data.sequence_length])
        return forward_flops(config.model, lengths, masked_tokens(config)).training
    batch = sampler.batch(0, range(_TRIED))
    return forward_flops(config.model, batch.sequence_lengths, batch.masked_tokens).training / _TRIED
