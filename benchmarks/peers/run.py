"""Times a training step of BERT-base here, in PyTorch and in JAX, in one run; prints Markdown tables.

All sides start from the same weights and train on the same batch; the losses of their first steps, without dropout,
are compared before anything is timed. Then they take turns on the same two cores, in an order that rotates; between
its turns a side waits. Groups of sides that fit into 24 GB of memory run one after the other, lucid in each.

    python benchmarks/peers/run.py [--turns 5] [--steps 2] [--length 128] [--only TEXT] [--quick]
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from report import Results, heading, table
from running import Running, SideError
from side import CORES, Settings, Side

import lucid
from lucid import kernels
from lucid.errors import LucidError
from lucid.models import BERTConfig, BERTForPreTraining

LAYOUTS = (2, 1)  # ranks
OURS = [Side("lucid", precision, ranks) for precision in ("float32", "bfloat16") for ranks in LAYOUTS]
PEERS = [
    *(Side("torch", "float32", ranks, head) for ranks in LAYOUTS for head in ("masked", "all")),
    Side("jax", "float32", 1),
    *(Side("torch", "bfloat16", ranks, compiled=compiled) for ranks in LAYOUTS for compiled in (False, True)),
]
# How many run beside both of ours. Each takes up to 6 GB.
PEERS_IN_A_GROUP = 2
CHECKED_STEPS = 3
# Of the losses of these steps, relative.
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}
ROWS = {128: 8, 512: 2}
QUICK = BERTConfig(
    vocab_size=1000,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=256,
    max_position_embeddings=32,
)


@cache
def reason_to_leave_out(side: Side) -> str | None:
    """Return what this environment lacks for `side`."""
    needed = {"lucid": (), "torch": ("torch", "transformers"), "jax": ("jax",)}[side.library]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be imported"
    if side.compiled and not (shutil.which("g++") or shutil.which("clang++")):
        return "there is no C++ compiler"
    if side.library == "lucid":
        try:
            kernels.set_precision(side.precision)
        except LucidError as error:
            return str(error)
    return None


def groups(only: str) -> Iterator[list[Side]]:
    """Return who takes turns with whom: some peers of one precision whose name contains `only`, and both of ours.

    Ours are alone where the name of none of the peers, but one of ours contains it.
    """
    for precision in ("float32", "bfloat16"):
        ours, peers = (
            [side for side in sides if side.precision == precision and reason_to_leave_out(side) is None]
            for sides in (OURS, [peer for peer in PEERS if only in peer.name])
        )
        for first in range(0, len(peers), PEERS_IN_A_GROUP):
            yield ours + peers[first : first + PEERS_IN_A_GROUP]
        if not peers and any(only in side.name for side in ours):
            yield ours


def check_losses(running: Running, results: Results) -> None:
    """Take the first steps of a side without dropout. Raises `SideError` if its losses are not those of the first."""
    side = running.settings.side
    results.losses[side] = running.take_turn(CHECKED_STEPS, dropout=False).losses
    say(f"{side.name}: losses {', '.join(f'{loss:.5f}' for loss in results.losses[side])}")
    if results.difference(side) > TOLERANCES[side.precision]:
        expected = ", ".join(f"{loss:.5f}" for loss in next(iter(results.losses.values())))
        raise SideError(f"{side.name}: the losses of the first steps are not {expected}")


def measure(sides: list[Side], results: Results, folder: str, cores: tuple[int, ...], turns: int, steps: int) -> None:
    """Start `sides`, let them take turns, and add what comes out to `results`."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as addresses:
        running = {}
        for number, side in enumerate(sides):
            settings = Settings(side, results.rows, results.length, folder, f"{addresses}/{number}", cores)
            running[side] = stack.enter_context(Running(settings))
            check_losses(running[side], results)
            running[side].take_turn(2, dropout=True)  # to warm up
        for turn in range(turns):
            first = turn % len(sides)
            results.add({side: running[side].take_turn(steps, dropout=True) for side in sides[first:] + sides[:first]})


def choose_cores() -> tuple[int, ...]:
    """Return the first logical CPUs that this process may use and that are on different cores."""
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    if len(cores) < CORES:
        sys.exit(f"the comparison is made on {CORES} cores, but here is {len(cores)}")
    return tuple(cores.values())[:CORES]


def share_taken_by_others(cores: tuple[int, ...], seconds: float = 2.0) -> float:
    """Return how busy `cores` are while this process sleeps, from 0 to 1."""

    def idle_ticks() -> int:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        return sum(int(line[4]) + int(line[5]) for line in lines if line[0] in {f"cpu{core}" for core in cores})

    before = idle_ticks()
    time.sleep(seconds)
    return max(0.0, 1 - (idle_ticks() - before) / (seconds * len(cores) * os.sysconf("SC_CLK_TCK")))


def say(sentence: str) -> None:
    """Tell how far the benchmark is, apart from what it prints in the end."""
    print(sentence, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of each turn")
    parser.add_argument("--length", type=int, choices=ROWS, help="of the sequences (default: one after the other)")
    parser.add_argument("--only", default="", help="the peers whose name contains this; 'lucid': no peers")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that all sides run")
    return parser.parse_args()


def main() -> None:
    options = parse()
    config, workloads = BERTConfig(), {options.length: ROWS[options.length]} if options.length else ROWS
    if options.quick:
        config, workloads = QUICK, {QUICK.max_position_embeddings: 4}
    cores = choose_cores()
    busy = share_taken_by_others(cores)
    if busy > 0.05:
        say(f"warning: others take {busy:.0%} of the cores; what is measured will be of a busy machine")
    for side in OURS + PEERS:
        if reason := reason_to_leave_out(side):
            say(f"{side.name} is left out: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        lucid.manual_seed(0)
        BERTForPreTraining(config).save_pretrained(folder)
        for length, rows in workloads.items():
            results = Results(rows, length)
            say(f"{rows} sequences of {length}")
            for sides in groups(options.only):
                measure(sides, results, folder, cores, options.turns, options.steps)
            print(heading(results, config, options.turns, options.steps, busy))
            print(table(results, config), flush=True)


if __name__ == "__main__":
    try:
        main()
    except SideError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
