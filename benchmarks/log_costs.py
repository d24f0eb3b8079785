"""Times what the log costs a step on CPUs: to record a wait in a collective, and to measure an update by layer.

A wait is the mean of 2,000 empty ones, in CPU time. Updates with AdamW are plain or measured, in turns. Printed is the
least of each.

    OMP_NUM_THREADS=2 python benchmarks/log_costs.py [--turns 30]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial

from made_up import SIZES

from lucid.distributed.communicators.status_writer import StatusWriter
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW, OneProcess

WAITS = 2000
TINY = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 32}  # fmt: skip
MODELS = {"tiny": TINY, **SIZES}


def least(turns: int, clock: Callable[[], float], *actions: Callable[[], object]) -> list[float]:
    """Return the least seconds of each action, which take turns."""
    found = [float("inf")] * len(actions)
    for _ in range(turns):
        for number, action in enumerate(actions):
            began = clock()
            action()
            found[number] = min(found[number], clock() - began)
    return found


def waits() -> None:
    status = StatusWriter(0, 2)
    for _ in range(WAITS):
        with status.waiting("all_reduce", 4096):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=30)
    turns = parser.parse_args().turns
    (seconds,) = least(turns, time.process_time, waits)
    print(f"a wait: {seconds / WAITS * 1e6:.1f} us")
    for name, shape in MODELS.items():
        flat = flatten(BERTForPreTraining(BERTConfig(**shape)))
        flat.gradients[:] = 1e-3
        optimizer = AdamW(OneProcess(flat))
        updates = [partial(optimizer.step, 1e-4, measured=measured) for measured in (False, True)]
        least(2, time.perf_counter, *updates)
        plain, measured = least(turns, time.perf_counter, *updates)
        parameters = sum(segment.stop - segment.start for segment in flat.segments)
        print(f"{name:5} {parameters:12,} parameters: {plain * 1e3:8.2f} ms, measured {measured * 1e3:8.2f} ms")


if __name__ == "__main__":
    main()
