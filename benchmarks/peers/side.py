"""What a side of the comparison is, what all sides train, and how one takes its turns.

A side is a process, or one a rank. It builds its model, and then waits for the word to take some steps: idle, so that
the side whose turn it is has the cores for itself.
"""

import gc
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

CORES = 2

# Of the optimizer and the clipping, the same on all sides.
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, MAX_NORM = 1e-4, (0.9, 0.999), 1e-6, 0.01, 1.0


@dataclass(frozen=True)
class Side:
    """A library and how it is set: `ranks` processes share the cores."""

    library: str  # lucid, torch or jax
    precision: str  # float32 or bfloat16
    ranks: int
    head: str = "masked"  # which positions the vocabulary is scored at: masked or all
    compiled: bool = False

    @property
    def threads(self) -> int:
        """How many threads each rank has."""
        return CORES // self.ranks

    @property
    def name(self) -> str:
        parts = [self.library, self.precision, f"{self.ranks} x {self.threads}"]
        return ", ".join(parts + ["all positions"] * (self.head == "all") + ["compiled"] * self.compiled)


@dataclass(frozen=True)
class Settings:
    """What a process of a side is told on its command line."""

    side: Side
    rows: int  # of the global batch
    length: int
    folder: str  # of the initial weights, in Hugging Face's format
    address: str  # the socket on which turns are given
    cores: tuple[int, ...]

    def as_argument(self) -> str:
        return json.dumps(asdict(self))

    def batch(self, rank: int) -> dict[str, np.ndarray]:
        """Return the share of `rank` in the batch, the same in every step: full sequences, 15% of each masked.

        `input_ids`, `token_type_ids` and `mlm_labels` [B, T], `nsp_labels` [B], and the places of the M masked tokens
        of each row as `positions` [B * M], indices into [B * T]. All are int64.
        """
        vocabulary = json.loads(Path(self.folder, "config.json").read_text())["vocab_size"]
        batch = full_batch(self.rows, self.length, vocabulary)
        share = self.rows // self.side.ranks
        batch = {name: array[rank * share : (rank + 1) * share] for name, array in batch.items()}
        return batch | {"positions": np.flatnonzero(batch["mlm_labels"] != -100)}


def full_batch(rows: int, length: int, vocabulary: int) -> dict[str, np.ndarray]:
    """Return a batch without padding, always the same, 15% of each row masked: all that `Settings.batch` cuts."""
    generator = np.random.default_rng(0)
    shape = rows, length
    ids = generator.integers(5, vocabulary, shape)
    masked = generator.random(shape).argsort(axis=1) < masked_in_a_row(length)
    return {
        "input_ids": np.where(masked, 4, ids),
        "token_type_ids": np.broadcast_to(np.arange(length) >= length // 2, shape).astype(np.int64),
        "mlm_labels": np.where(masked, ids, -100),
        "nsp_labels": generator.integers(0, 2, rows),
    }


def masked_in_a_row(length: int) -> int:
    """Return how many tokens of a sequence are masked."""
    return round(0.15 * length)


def begin(rank: int) -> Settings:
    """Read the command line, and take this rank's cores. To be called before a library counts them."""
    told = json.loads(sys.argv[1])
    settings = Settings(**{**told, "side": Side(**told["side"])})
    threads = settings.side.threads
    os.sched_setaffinity(0, settings.cores[rank * threads : (rank + 1) * threads])
    return settings


def serve(settings: Settings, rank: int, step: Callable[[bool], float]) -> None:
    """Take steps whenever the benchmark asks for them, until it hangs up.

    `step(dropout)` takes one and returns this rank's share of its loss: those of all ranks add up to the loss.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(settings.address)
    with connection, connection.makefile("rw") as lines:
        answer: dict[str, object] = {"rank": rank}
        while True:
            lines.write(json.dumps(answer) + "\n")
            lines.flush()
            request = lines.readline()
            if not request:
                return
            answer = take_turn(step, **json.loads(request))


def take_turn(step: Callable[[bool], float], steps: int, dropout: bool) -> dict[str, object]:
    """Return what `steps` steps took: seconds and the most memory, in GiB, and their losses."""
    gc.collect()
    forget_peak()
    started = time.perf_counter()
    losses = [step(dropout) for _ in range(steps)]
    return {"seconds": time.perf_counter() - started, "losses": losses, "peak": peak()}


def forget_peak() -> None:
    """Let `peak` count from now on; where that is not allowed it counts from the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> float:
    """Return the most memory that this process had in RAM, in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
