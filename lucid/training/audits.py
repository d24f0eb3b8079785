"""Audits of a run: each rank also computes a micro-batch of another one, and compares the gradients bit for bit.

Both compute the micro-batch anew, at the weights of the present step, into memory of its own. So an audit changes no
bit of the run. It works because nothing in a micro-batch depends on the rank that computes it.
"""

import json
import platform
from collections.abc import Callable

import numpy as np

from lucid import random
from lucid.backend import Array
from lucid.distributed import agreed, gather_texts
from lucid.distributed.health.audits import find_fault
from lucid.distributed.health.replicas import checksums
from lucid.errors import ConfigError, TrainingError
from lucid.training.micro_batches import LocalBatch, MicroBatches, StepInputs
from lucid.training.numerical_environment import numerical_environment
from lucid.training.run_on_rank import Run
from lucid.training.start import difference


class Audits:
    """The audits of `run`, whose micro-batches `micro_batches` computes. All ranks make this together.

    Raises an agreed `ConfigError` if two ranks compute in different ways, so that their bits may differ.
    """

    def __init__(self, run: Run, micro_batches: MicroBatches) -> None:
        self._run, self._micro_batches = run, micro_batches
        # A single rank has no other one.
        self._every = run.config.train.audit_every if run.communicator.size > 1 else None
        self._hosts = _hosts_alike(run) if self._every else []
        # The step of the last audit that found nothing.
        self._last: int | None = None

    def check(self, local_batch: Callable[[int], LocalBatch], weights: tuple[float, float]) -> None:
        """Compare gradients before a step, if an audit is due. All ranks call this.

        `local_batch` returns the part of the step's global batch that a rank has; `weights` are those of its losses.
        Raises an agreed `TrainingError` if a rank miscomputes.
        """
        run, flat = self._run, self._run.ddp.flat
        if self._every is None or run.step % self._every:
            return
        number, buffer = run.step // self._every, np.empty_like(flat.gradients)

        def checksums_of(rank: int) -> Array:
            parts = local_batch(rank).micro_batches
            # The pairs repeat after fewer audits than there are ranks.
            part = parts[number // run.communicator.size % len(parts)]
            coordinates = random.Coordinates.of(run.config.train.seed, run.step, part.samples)
            with run.ddp.aside(buffer):
                self._micro_batches.run(part.rows, StepInputs(coordinates, *weights), (True, True))
            return checksums(flat.views(buffer))

        names = [segment.name for segment in flat.segments]
        fault = find_fault(run.communicator, self._hosts, number, names, checksums_of)
        if fault is not None:
            advice = "no audit of this attempt was before it: lucid verify replays what older checkpoints hold"
            if self._last is not None:
                advice = f"branch from a checkpoint up to step {self._last}, when all ranks last agreed"
            message = (
                f"step {run.step + 1}: {fault}; a processor or memory may be faulty there: leave the host out; {advice}"
            )
            raise agreed(TrainingError(message))
        self._last = run.step


def _hosts_alike(run: Run) -> list[str]:
    """Return the hosts of all ranks. Raises an agreed `ConfigError` if they cannot compute the same bits."""
    own = {"host": platform.node(), "environment": numerical_environment(run.model.device)}
    ranks = [json.loads(text) for text in gather_texts(run.communicator, json.dumps(own))]
    for rank, other in enumerate(ranks):
        if changed := difference(other["environment"], ranks[0]["environment"]):
            message = (
                f"train.audit_every compares bits, but rank {rank} on {other['host']} computes with {changed} on rank "
                "0: start ranks that are alike (train.threads_per_rank, one kind of processor), or leave audits out"
            )
            raise agreed(ConfigError(message))
    return [each["host"] for each in ranks]
