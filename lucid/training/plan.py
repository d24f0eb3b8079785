"""What a run will take, by its settings: of a rank's memory, and of work. Nothing is trained or written for it."""

import numpy as np

from lucid.distributed.exact import buffers_needed
from lucid.models.bert.flops import forward_flops
from lucid.models.bert.memory import Kept, activation_bytes, parameter_count
from lucid.training.config import RunConfig

_FLOAT32, _BFLOAT16 = 4, 2
# Python and its libraries: what benchmarks/memory.py finds beyond the rest.
_PROCESS = 230_000_000


def masked_tokens(config: RunConfig) -> int:
    """Return the most tokens to predict in a sequence; with `data.packing`, in a row of them, about as many."""
    share = round(config.data.mlm_probability * config.data.sequence_length)
    return min(config.data.max_predictions or share, share)


def flops_of_sequence(config: RunConfig) -> int:
    """Return the FLOPs of training on one sequence of the full length: forward and backward, as MFU counts them."""
    return forward_flops(config.model, np.array([config.data.sequence_length]), masked_tokens(config)).training


def memory_of_rank(config: RunConfig, size: int) -> dict[str, int]:
    """Return about how many bytes each of `size` ranks takes at most, by what they hold; on a GPU, of its memory.

    Every sequence counts with its full length. The first rank, and on a GPU its host, takes `checkpoint_bytes` more.
    """
    train, parameters, sequences = config.train, parameter_count(config.model), config.sequences_at_once(size)
    rounds = train.precision == "bfloat16"
    buffers = buffers_needed(config.exact_micro_batches(size) or 1)
    moments = 2 * _FLOAT32 * parameters
    return {
        # On a GPU a rounded copy is kept with the weights; the CPU rounds those that products take.
        "weights": (_FLOAT32 + _BFLOAT16 * rounds) * parameters,
        "gradients": buffers * _FLOAT32 * parameters,
        "moments": -(-moments // size) if config.optimizer.sharded else moments,
        "activations": activation_bytes(
            config.model,
            Kept.on(train.device, train.precision),
            train.recompute,
            sequences,
            config.data.sequence_length,
            sequences * masked_tokens(config),
        ),
        **({"the process": _PROCESS} if train.device == "cpu" else {}),
    }


def checkpoint_bytes(config: RunConfig) -> int:
    """Return about how large a checkpoint is, in memory while it is written, and on disk: weights and both moments."""
    return 3 * _FLOAT32 * parameter_count(config.model)
