"""Compares the steps that `lucid plan --measure` predicts with those of real runs: prints a table for docs/scaling.md.

For each length of sequences, one measurement, on one host with two ranks, predicts all: 1, 2 and 4 ranks on one host,
and one rank on each of two hosts, with several rates of the link. Nothing is fitted to the runs. Each prediction is
compared with a run of `lucid train` on the same samples: the median over windows of its log in its second half, because
the first ten seconds of a process are slower. Ranks have one thread, so 4 ranks share cores on a machine with fewer.

The two hosts are network namespaces of this machine, joined by a link of limited rate; this needs root. They share its
memory and caches, so a rank on each is as crowded as two ranks on one host. A shaped link is predicted from its rate;
the link without a limit from a measurement by `lucid plan --measure` on both hosts, of which only the link is used.

    python benchmarks/scaling.py data/python-docs [--lengths 128 512] [--ranks 1 2 4] [--rates 200 1000 0] [--steps 40]
        [--save FILE] [KEY=VALUE ...]

Other programs on the machine make all figures wrong: the measurement and the runs are minutes apart. FILE gets what was
measured and predicted in JSON, a line for each case.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lucid.analysis.prediction.link_model import Link
from lucid.analysis.prediction.step_model import LINK, Measured, Step, predict
from lucid.cli.plan.scaling import parse
from lucid.training.config import RunConfig, load
from lucid.training.corpora import open_mixture
from lucid.training.estimates import flops_of_samples

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hosts import LINK as INTERFACE
from hosts import Hosts, ip
from launching import FEW_CORES

MODEL = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
MEASURED_ON = 2
WINDOWS = 8
MPI4PY = ("-m", "mpi4py", "-m", "lucid")


@dataclass(frozen=True)
class Case:
    """A number of ranks on each of some hosts, and the link between these: its rate in Mbit/s, 0 for no limit."""

    hosts: int
    ranks: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """The words of the table."""
        if self.rate is None:
            return f"1 host, {self.ranks} rank{'s' * (self.ranks != 1)}"
        return f"2 hosts, {f'{self.rate:g} Mbit/s' if self.rate else 'no limit'}"


@dataclass(frozen=True)
class Outcome:
    """A predicted step, the measurement that predicts it, and the seconds of a real one."""

    step: Step
    basis: Measured
    measured: float

    @property
    def error(self) -> float:
        """The relative error of the prediction."""
        return self.step.seconds / self.measured - 1


class Machine:
    """Starts lucid on one host, or on both."""

    def __init__(self, hosts: Hosts, timeout: float) -> None:
        beside = Path(sys.executable).parent / "mpiexec"
        launcher = str(beside) if beside.exists() else shutil.which("mpiexec")
        if launcher is None:
            sys.exit("there is no mpiexec: install lucid[mpich] into this environment")
        self.hosts, self.launcher, self.timeout = hosts, launcher, timeout

    def lucid(self, case: Case, *arguments: str) -> str:
        """Run a command on the ranks of `case`, and return its output."""
        start = [self.launcher, "-n", str(case.ranks)]
        if case.hosts == 2:
            shape(self.hosts, case.rate or 0.0)
            start = self.hosts.mpiexec(self.launcher, case.ranks)
        environment = os.environ | FEW_CORES | {"UCX_NET_DEVICES": INTERFACE}
        command = [*start, sys.executable, *MPI4PY, *arguments]
        return subprocess.run(
            command, env=environment, check=True, timeout=self.timeout, stdout=subprocess.PIPE, text=True
        ).stdout


def shape(hosts: Hosts, megabits: float) -> None:
    """Limit the link to so many million bits a second each way; 0: to none."""
    for namespace in hosts.namespaces:
        queue = ["ip", "netns", "exec", namespace, "tc", "qdisc"]
        subprocess.run([*queue, "del", "dev", INTERFACE, "root"], capture_output=True, check=False)
        if megabits:
            limits = ["rate", f"{megabits}mbit", "burst", "256kb", "latency", "100ms"]
            ip("netns", "exec", namespace, "tc", "qdisc", "replace", "dev", INTERFACE, "root", "tbf", *limits)


def settings(folder: Path, corpus: str, length: int, options: argparse.Namespace) -> tuple[Path, RunConfig]:
    """Write the settings of the runs with sequences of `length`; return the file, and what it says."""
    manifest = json.loads(Path(corpus, "manifest.json").read_text())
    path = folder / f"{length}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "run_folder": str(folder / f"run-{length}"),
                "model": {**MODEL, "vocab_size": manifest["vocab_size"], "max_position_embeddings": length},
                "data": {"path": str(Path(corpus).absolute()), "sequence_length": length},
                "optimizer": {"warmup_steps": 10},
                "train": {
                    "steps": options.steps,
                    "global_batch": options.tokens // length,
                    "micro_batch": max(1, options.tokens // length // 4),
                    "log_every": max(1, options.steps // WINDOWS),
                    "evaluation_samples": 1,
                },
            }
        )
    )
    return path, load(path, options.overrides)


def measure(machine: Machine, case: Case, path: Path, overrides: list[str]) -> Measured:
    """Return what `lucid plan --measure` measures on the ranks of `case`."""
    output = machine.lucid(case, "plan", str(path), "--measure", "--json", *overrides)
    return Measured.from_dict(json.loads(output[output.index("{") :])["measured"])


def seconds_of_step(machine: Machine, case: Case, path: Path, config: RunConfig, overrides: list[str]) -> float:
    """Train, and return the median time of a step."""
    shutil.rmtree(config.run_folder, ignore_errors=True)
    machine.lucid(case, "train", str(path), *overrides)
    lines = [json.loads(line) for line in (config.run_folder / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["sequences_per_second"] for line in lines if "sequences_per_second" in line]
    return config.train.global_batch / statistics.median(speeds[len(speeds) // 2 :])


def compare(
    machine: Machine, cases: list[Case], path: Path, config: RunConfig, overrides: list[str]
) -> dict[Case, Outcome]:
    """Measure once, predict all cases, and train each."""
    flops = flops_of_samples(config, open_mixture(config), config.train.steps * config.train.global_batch)
    measured = measure(machine, Case(1, MEASURED_ON), path, overrides)
    links: dict[float, Link | None] = {rate: parse(f"{rate:g}Mbit") for case in cases if (rate := case.rate)}
    if any(case.rate == 0 for case in cases):
        links[0] = measure(machine, Case(2, 1, 0), path, overrides).link
    found = {}
    for case in cases:
        # Each of the two hosts has a core of the machine, as crowded as each of two ranks on one host.
        basis = measured if case.hosts == 1 else replace(measured, ranks_per_node=1, cores=1, crowding=1.0)
        link = links[case.rate] if case.rate is not None else None
        step = predict(config, basis, link, case.hosts, case.ranks, flops)
        seconds = seconds_of_step(machine, case, path, config, overrides)
        found[case] = Outcome(step, basis, seconds)
    return found


def rows(length: int, outcomes: dict[Case, Outcome]) -> list[str]:
    """Return the lines of the table for sequences of `length`."""
    lines = []
    for case, outcome in outcomes.items():
        step = outcome.step
        middle, low, high = (f"{1e3 * seconds:,.0f}" for seconds in (step.seconds, step.low, step.high))
        lines.append(
            f"| {length} | {case.name} | {middle} ({low} to {high}) | {1e3 * outcome.measured:,.0f} | "
            f"{outcome.error:+.0%} | {step.share(LINK):.0%} |"
        )
    return lines


def save(path: Path, length: int, outcomes: dict[Case, Outcome]) -> None:
    """Append what was measured and predicted for sequences of `length`."""
    with path.open("a") as file:
        for case, outcome in outcomes.items():
            print(json.dumps({"length": length, **asdict(case), **asdict(outcome)}), file=file)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Print the table, line by line, and the worst error."""
    cases: list[Any] = [Case(1, ranks) for ranks in options.ranks]
    hosts = Hosts(folder)
    try:
        if options.rates:
            hosts.make()
            hosts.join()
            cases += [Case(2, 1, rate) for rate in options.rates]
        print("| length | ranks | predicted, ms | measured, ms | error | link |")
        print("|---|---|---|---|---|---|", flush=True)
        errors = {}
        for length in options.lengths:
            path, config = settings(folder, options.corpus, length, options)
            found = compare(Machine(hosts, options.timeout), cases, path, config, options.overrides)
            print(*rows(length, found), sep="\n", flush=True)
            if options.save:
                save(options.save, length, found)
            errors |= {(length, case): outcome.error for case, outcome in found.items()}
        length, case = max(errors, key=lambda key: abs(errors[key]))
        print(f"\nworst: {errors[length, case]:+.0%}, length {length}, {case.name}")
    finally:
        hosts.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="a corpus that lucid prepare has made")
    parser.add_argument("overrides", nargs="*", help="settings of all runs, as KEY=VALUE")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512])
    parser.add_argument(
        "--rates", type=float, nargs="*", default=[200, 1000, 0], help="of the link, in Mbit/s; 0: no limit"
    )
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4], help="on one host")
    parser.add_argument("--save", type=Path, metavar="FILE", help="append the details to FILE")
    parser.add_argument("--tokens", type=int, default=4096, help="of a global batch")
    parser.add_argument("--steps", type=int, default=40, help="of each run")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for each run")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main()
