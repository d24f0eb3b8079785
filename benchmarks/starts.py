"""Times starts of `lucid train` on one host: from the launch of so many ranks to their first step.

A run takes one step of a model as small as the one in configs/small_cpu.yaml, with one thread a rank. Each printed line
gives the best of a few runs: seconds until the start line, seconds until the first step, and the processor time of all
ranks until their ends. More ranks than cores take turns.

    python benchmarks/starts.py [--ranks 1 2 4 8 16 32] [--turns 3] [KEY=VALUE ...]
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

from lucid.preparation import prepare

SETTINGS = {
    "model": {
        "vocab_size": 2000,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 64,
    },
    "data": {"sequence_length": 64},
    "optimizer": {"warmup_steps": 0},
    "train": {"steps": 1, "log_every": 1, "evaluation_samples": 1},
}


class Start(NamedTuple):
    """Seconds from the launch to the start line and to the first step, and of all processors until the end."""

    ready: float
    first_step: float
    processor: float


def make_run(folder: Path, ranks: int) -> Path:
    """Return the settings of a run that gives each of `ranks` two sequences, on a corpus of made-up words."""
    if not (folder / "corpus").exists():
        draw = random.Random(0)
        words = ["".join(draw.choices("bcdfgklmnprstaeiou", k=draw.randint(2, 9))) for _ in range(1000)]
        text = "\n\n".join(" ".join(draw.choices(words, k=200)) + "." for _ in range(300))
        (folder / "text.txt").write_text(text)
        prepare([folder / "text.txt"], folder / "corpus", vocab_size=2000, held_out=0.05)
    file = folder / f"{ranks}.yaml"
    data, train = ({**SETTINGS[name]} for name in ("data", "train"))
    data["path"], train["global_batch"] = str(folder / "corpus"), 2 * ranks
    file.write_text(yaml.safe_dump({**SETTINGS, "data": data, "train": train}))
    return file


def start(file: Path, ranks: int, settings: list[str]) -> Start:
    """Run `file` on so many ranks from the beginning."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        command = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "mpi4py", "-m", "lucid", "train", str(file)]
        used, started = processor_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [*command, f"run_folder={folder}/run", *settings],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        seen = {}
        for line in process.stdout or ():
            for name, beginning in (("ready", "ranks "), ("first_step", "step ")):
                if line.lstrip("┏━┳┓┃ ").startswith(beginning):
                    seen.setdefault(name, time.perf_counter() - started)
        if process.wait():
            sys.exit(f"the run ended with exit code {process.returncode}")
        return Start(**seen, processor=processor_seconds() - used)


def processor_seconds() -> float:
    """Return the seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="what `lucid train` is given beside")
    arguments = parser.parse_args()

    print(f"{os.cpu_count()} hardware threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'ranks':>5}  {'ready':>9}  {'first step':>10}  {'processor':>10}  {'of it a rank':>12}")
    with tempfile.TemporaryDirectory() as folder:
        start(make_run(Path(folder), 1), 1, arguments.settings)  # fills caches
        for ranks in arguments.ranks:
            file = make_run(Path(folder), ranks)
            turns = [start(file, ranks, arguments.settings) for _ in range(arguments.turns)]
            best = Start(*(min(times) for times in zip(*turns, strict=True)))
            a_rank = best.processor / ranks
            print(
                f"{ranks:5}  {best.ready:7.2f} s  {best.first_step:8.2f} s  {best.processor:8.1f} s  {a_rank:10.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
