"""Compares the losses of runs whose gradients travel between nodes as float32 and as bfloat16.

Two ranks train on one machine. Each of them acts as a node, so that half of the terms and all of the sums are rounded.
A third run, in float32 with another seed, shows which differences mean nothing. The output has the losses of each
window of the log, the largest relative difference, in all and in the second half, and the losses on held-out text.

    python benchmarks/wire_dtype.py [configs/small_cpu.yaml] [--steps 400]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAM = """
from nodes import SeveralNodes
from lucid.cli import main
from lucid.distributed import connection

connection.MPICommunicator = SeveralNodes
main()
"""
RUNS = {
    "float32": ["distributed.wire_dtype=float32"],
    "bfloat16": ["distributed.wire_dtype=bfloat16"],
    "another seed": ["distributed.wire_dtype=float32", "train.seed=1"],
}


def train(config: Path, folder: Path, steps: int, overrides: list[str]) -> list[dict[str, float]]:
    """Return the lines of the log."""
    beside = Path(sys.executable).parent / "mpiexec"
    launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
    settings = [f"run_folder={folder}", f"train.steps={steps}", f"train.log_every={max(1, steps // 20)}", *overrides]
    subprocess.run(
        [str(launcher), "-n", "2", sys.executable, "-m", "mpi4py", "-c", PROGRAM, "train", str(config), *settings],
        env=os.environ | {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=REPOSITORY / "configs/small_cpu.yaml")
    parser.add_argument("overrides", nargs="*", help="settings of all runs, as key=value")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logs = {
            name: train(
                options.config, Path(folder, name.replace(" ", "-")), options.steps, options.overrides + settings
            )
            for name, settings in RUNS.items()
        }
    losses = {name: {line["step"]: line["loss"] for line in log if "loss" in line} for name, log in logs.items()}
    print("step   ", *(f"{name:>12}" for name in RUNS))
    for step in losses["float32"]:
        print(f"{step:7}", *(f"{losses[name][step]:12.4f}" for name in RUNS))
    for name in list(RUNS)[1:]:
        differences = [abs(losses[name][step] / loss - 1) for step, loss in losses["float32"].items()]
        late = max(differences[len(differences) // 2 :])
        print(f"{name}: at most {100 * max(differences):.3f}% from float32, {100 * late:.3f}% in the second half")
    for name, log in logs.items():
        print(f"{name}: held-out", {key: round(value, 4) for key, value in log[-1].items() if "loss" in key})


if __name__ == "__main__":
    main()
