"""Times how long a run on two ranks takes to end, or to recover, after each kind of fault.

It is a small run, with a watchdog of `--watchdog` seconds. The fault happens at step 20, in rank 1 or in the process
that the output names. The time is measured from the fault to the end of all processes of the run, or, with restarts, to
the next step in the log. The output has medians of `--turns` runs with minimum and maximum, the exit code, and the line
of the message.

    python benchmarks/faults.py [--turns 3] [--watchdog 5]
"""

import argparse
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from lucid.preparation import prepare

REPOSITORY = Path(__file__).resolve().parents[1]

# What `lucid launch` is to the mpiexec of its arguments.
LAUNCH = """
import sys
from lucid.launch import attempt

attempt.block_signals()
sys.exit(attempt.run(sys.argv[1:], {}, [], can_save=True).status)
"""
# `lucid train`, in which one rank records the time before step 20, and then runs into its fault.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from lucid.cli import main
from lucid.training.trainer import Trainer

take_step = Trainer._step

def parent(process):
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])

def above(program):
    process = os.getpid()
    while Path(f"/proc/{process}/comm").read_text().strip() != program:
        process = parent(process)
    return process

def launch():
    return parent(above("mpiexec"))

def now():
    print(f"FAULT {time.time()} FAULT", flush=True)

def step(self, *arguments):
    if self.run.step == 20 and self.run.communicator.rank == 1:
        now()
        FAULT
    take_step(self, *arguments)

Trainer._step = step
main()
"""

FAULTS = {
    "uncaught exception": "1 / 0",
    "sys.exit(3)": "sys.exit(3)",
    "os._exit(3)": "os._exit(3)",
    "os._exit(0)": "os._exit(0)",
    "killed (SIGKILL)": "os.kill(os.getpid(), signal.SIGKILL)",
    "segmentation fault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "its parent killed": "os.kill(os.getppid(), signal.SIGKILL)",
    "proxy killed": "os.kill(above('hydra_pmi_proxy'), signal.SIGKILL)",
    "mpiexec killed": "os.kill(above('mpiexec'), signal.SIGKILL)",
    "lucid launch killed": "os.kill(launch(), signal.SIGKILL)",
    "stopped (SIGSTOP)": "os.kill(os.getpid(), signal.SIGSTOP)",
    "endless loop": "while True: pass",
    "SIGTERM to mpiexec": "os.kill(above('mpiexec'), signal.SIGTERM)",
    "SIGUSR1 to mpiexec": "os.kill(above('mpiexec'), signal.SIGUSR1)",
    "SIGHUP to lucid launch": "os.kill(launch(), signal.SIGHUP)",
    "SIGINT to lucid launch": "os.kill(launch(), signal.SIGINT)",
    "a second SIGINT to it": "os.kill(launch(), signal.SIGINT); time.sleep(1); now(); os.kill(launch(), signal.SIGINT)",
}


def make_run(folder: Path, watchdog: float) -> Path:
    """Prepare a small corpus in `folder` and return the YAML file of a run on it."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 5))) for _ in range(300)]
    sentences = [" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(1500)]
    text = folder / "text.txt"
    text.write_text("\n\n".join(" ".join(sentences[start : start + 10]) for start in range(0, 1500, 10)))
    prepare([text], folder / "corpus", vocab_size=300)
    model = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings = {
        "run_folder": str(folder / "run"),
        "model": {**model, "intermediate_size": 64, "max_position_embeddings": 32},
        "data": {"path": str(folder / "corpus"), "sequence_length": 32},
        "train": {
            "steps": 100_000,
            "global_batch": 8,
            "log_every": 1,
            "checkpoint_every": 10,
            "evaluation_samples": 8,
            "watchdog_seconds": watchdog,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def time_fault(run_file: Path, fault: str, folder: Path) -> tuple[float, int, str]:
    """Return the seconds from the fault to the end of the run, the exit code, and the last message."""
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    command = [sys.executable, "-c", LAUNCH, mpiexec, "-n", "2", sys.executable]
    program = PROGRAM.replace("        FAULT\n", f"        {fault}\n")
    command += ["-m", "lucid.launch.rank_parent", "-m", "mpi4py"]
    command += ["-c", program, "train", str(run_file), f"run_folder={folder}"]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False)
    output = finished.stdout + finished.stderr
    began = float(re.findall(r"FAULT ([\d.]+) FAULT", output)[-1])
    said = re.findall(
        r"(?:rank|lucid|ranks|stopped|saved).*(?:all ranks end|stopped at step).*|stopped at step.*", output
    )
    return time.time() - began, finished.returncode, said[0] if said else ""


def time_restart(run_file: Path, folder: Path) -> float:
    """Return the seconds from the kill of a rank to the next step that the restarted run logs."""
    sys.path.append(str(REPOSITORY / "tests"))
    from launching import rank_processes

    command = ["launch/mpirun.sh", "-n", "2", "--restarts", "1", str(run_file), f"run_folder={folder}"]
    environment = {**os.environ, "PYTHON": sys.executable}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment)
    assert process.stdout is not None
    killed = 0.0
    for line in process.stdout:
        if not killed and line.startswith("step     20/"):
            os.kill(rank_processes(process.pid)[-1], 9)
            killed = time.time()
        elif "resumes from step" in line:
            break
    next(process.stdout)
    seconds = time.time() - killed
    process.terminate()
    process.communicate(timeout=60)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--watchdog", type=float, default=5.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_file = make_run(folder, options.watchdog)
        for what, fault in FAULTS.items():
            results = [time_fault(run_file, fault, folder / f"{what}{turn}") for turn in range(options.turns)]
            seconds = [result[0] for result in results]
            report(what, seconds, f"exit code {results[0][1]}  {results[0][2]}")
        report("restart", [time_restart(run_file, folder / f"restart{turn}") for turn in range(options.turns)], "")


def report(what: str, seconds: list[float], rest: str) -> None:
    spread = f"({min(seconds):.1f} to {max(seconds):.1f})"
    print(f"{what:22} {statistics.median(seconds):5.1f} s {spread:14} {rest}", flush=True)


if __name__ == "__main__":
    main()
