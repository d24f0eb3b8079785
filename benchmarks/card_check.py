"""Finds out in a few minutes whether lucid is right and fast on this machine's card, and writes down what it finds.

    python benchmarks/card_check.py
    python benchmarks/card_check.py --wheels wheels --minutes 9 --output card-check
    python benchmarks/card_check.py --only graphs tests
    python benchmarks/card_check.py --tiny

The parts come in the order in which they tell most: the card and its software; steps by CUDA graphs beside steps
launched kernel by kernel, bit for bit; the tests that need a card; steps a second of BERT-base, alone and beside
PyTorch; how long each algorithm of cuBLASLt takes; races between threads. Each has a time of its own, and what one does
not need the later ones may have. One that fails or hangs stops no other. At any time OUTPUT/results.json and
OUTPUT/results.md have what has been found so far, and OUTPUT/output.log has what was printed.

Nothing comes from the network. What has to be there is named if it is missing. On a machine with a network

    {download}

fetches what is most often missing, for the version of Python that shows this text. Bring the folder `wheels`, and name
it with --wheels: the check installs what is missing into a temporary environment, which it removes at its end.

--tiny goes through all parts with small models on the emulated card of tests/stand_in.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from card import wanted
from card.results import Line, Results, graphs_table, markdown, steps_table, tests_table

ROOT = Path(__file__).parents[1]
EMULATION = ROOT / "tests" / "stand_in"
LINES_SHOWN = 12
# To find out what is missing, and install it.
SECONDS_TO_PREPARE = 30
# CuPy opens the cards for it.
SECONDS_TO_COUNT = 20
SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True)
class Part:
    """Something to find out: `seconds` are its own, `needs` the modules that it cannot do without.

    It is `check(results, tiny)` of a module beside, or, with `steps`, gpu_step.py with these arguments.
    """

    name: str
    title: str
    seconds: float
    needs: Sequence[str]
    module: str = ""
    steps: Sequence[str] = ()
    table: Callable[[list[Line]], list[Line]] = list


LUCID, BESIDE_PYTORCH = tuple(wanted.STEPS), (*wanted.STEPS, *wanted.TORCH)
RANKS = *wanted.STEPS, "mpi4py", *wanted.RANKS
TESTS = *wanted.STEPS, *wanted.COMMANDS, *wanted.TESTS
PARTS = (
    Part("card", "The card", 20, (), "machine"),
    Part("graphs", "Steps by CUDA graphs and one by one", 80, LUCID, "graph_bits", table=graphs_table),
    Part("ranks", "The same on a card for each rank", 30, RANKS, "graph_bits", table=graphs_table),
    Part("tests", "Tests", 100, TESTS, "outcomes", table=tests_table),
    Part("steps", "lucid alone", 50, LUCID, table=steps_table, steps=(
        "--sides", "lucid", "--models", "base", "--dropouts", "0.1", "--turns", "3",
    )),
    Part("eager", "Beside PyTorch, not compiled", 60, BESIDE_PYTORCH, table=steps_table, steps=(
        "--mode", "eager", "--models", "base", "--dropouts", "0", "0.1", "--turns", "3",
    )),
    Part("compiled", "Beside PyTorch, compiled", 120, BESIDE_PYTORCH, table=steps_table, steps=(
        "--models", "base", "large", "--dropouts", "0.1", "--turns", "3",
    )),
    Part("products", "Products by cuBLASLt", 40, LUCID, "product_times"),
    Part("races", "Races between threads", 40, TESTS, "races"),
)  # fmt: skip
TINY_STEPS = "--tiny", "--turns", "1", "--steps", "1"


class Report:
    """What has been found so far, in `folder`: results.json and results.md."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self._folder = folder
        self.found: dict[str, Any] = {"minutes": minutes, "missing": {}, "parts": {}, "finished": False}

    def section(self, part: Part) -> str:
        """Return what there is to say of a part."""
        found = self.found["parts"][part.name]
        head = f"## {part.title}: {found['status']}, {found['seconds']:.0f} s\n"
        said = "".join(f"    {line}\n" for line in found.get("output", ()))
        return "\n".join(filter(None, [head, said, markdown(part.table(found["results"]))]))

    def save(self) -> None:
        sections = [self.section(part) for part in PARTS if part.name in self.found["parts"]]
        missing = self.found["missing"]
        head = "# What a check of the card has found\n\n" + (f"{wanted.sentence(missing)}\n\n" if missing else "")
        texts = {"results.json": json.dumps(self.found, indent=1), "results.md": head + "\n".join(sections)}
        for name, text in texts.items():
            aside = self._folder / f"{name}.partial"
            aside.write_text(text, encoding="utf-8")
            aside.replace(self._folder / name)


def is_bad(found: dict[str, Any]) -> bool:
    """Return whether a part has failed, or has found something wrong before its time was over."""
    wrong = (line.get("same") is False or line.get("outcome") == "failed" for line in found["results"])
    return found["status"] == "failed" or any(wrong)


class Check:
    """Goes through the parts, each in processes of its own."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._folder = options, options.output.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._deadline = time.monotonic() + 60 * options.minutes
        self.report = Report(self._folder, options.minutes)
        (self._folder / "output.log").write_text("")
        path = [*([str(EMULATION)] if options.tiny else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            # For containers, where one is root.
            "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }  # fmt: skip
        self._python = sys.executable

    def run(self) -> bool:
        """Go through all parts, and return whether nothing is wrong."""
        with tempfile.TemporaryDirectory(prefix="lucid-card-check-", ignore_cleanup_errors=True) as folder:
            # Beside lines of results an environment of many files, if there are wheels.
            self._temporary = Path(folder)
            return self._go_through()

    def _go_through(self) -> bool:
        self._prepare()
        parts = [part for part in PARTS if not self._options.only or part.name in self._options.only]
        scale = 60 * self._options.minutes / (SECONDS_TO_PREPARE + sum(part.seconds for part in PARTS))
        for number, part in enumerate(parts):
            left, later = self._deadline - time.monotonic(), scale * sum(each.seconds for each in parts[number + 1 :])
            self._run(part, max(left - later, min(left, scale * part.seconds)))
            self.report.save()
            print(self.report.section(part), flush=True)
        self.report.found["finished"] = True
        self.report.save()
        return not any(is_bad(found) for found in self.report.found["parts"].values())

    def _prepare(self) -> None:
        """Find out what is missing, and install what can be."""
        lacking = wanted.missing(self._python, wanted.ALL, self._environment)
        if lacking and self._options.wheels:
            try:
                self._python = wanted.install(self._options.wheels, lacking, self._temporary / "environment")
                path = self._environment.get("PATH", "")
                self._environment["PATH"] = f"{Path(self._python).parent}{os.pathsep}{path}"
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"the wheels could not be installed: {error} {getattr(error, 'stderr', '') or ''}", flush=True)
            lacking = wanted.missing(self._python, wanted.ALL, self._environment)
            print(f"what was in the wheels is in the environment of {self._python}", flush=True)
        self.report.found["missing"] = lacking
        if lacking:
            print(wanted.sentence(lacking), flush=True)

    def _run(self, part: Part, seconds: float) -> None:
        found = self.report.found["parts"][part.name] = {"status": "running", "seconds": 0.0, "results": []}
        obstacle = "no time was left" if seconds <= 0 else self._obstacle(part)
        if obstacle:
            found["status"] = f"left out: {obstacle}"
            return
        results = Results(self._temporary / f"{part.name}.jsonl")
        started, log = time.monotonic(), self._folder / "output.log"
        printed_before = log.stat().st_size
        with log.open("a") as output, process_group(self._command(part, results), self._environment, output) as process:
            while process.poll() is None and time.monotonic() - started < seconds:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                if (lines := results.read()) != found["results"]:
                    found["results"] = lines
                    self.report.save()
            code = process.poll()
        found["status"] = "done" if code == 0 else "failed" if code is not None else "stopped, as its time was over"
        found["seconds"], found["results"] = time.monotonic() - started, results.read()
        if code:
            printed = log.read_bytes()[printed_before:].decode(errors="replace")
            found["output"] = printed.splitlines()[-LINES_SHOWN:]

    def _obstacle(self, part: Part) -> str:
        """Return why a part cannot be run, if it cannot."""
        lacking = sorted(name for name in part.needs if name in self.report.found["missing"])
        if lacking:
            return f"{', '.join(lacking)} cannot be imported"
        if part.name != "card" and self.report.found["parts"].get("card", {}).get("status") == "failed":
            return "there is no card that CuPy can use"
        if part.name == "ranks" and self._cards < 2:
            return "there are not two cards"
        if part.name == "ranks" and not self._mpiexec():
            return "there is no mpiexec"
        return ""

    @functools.cached_property
    def _cards(self) -> int:
        """How many cards there are; none if CuPy cannot say it in time."""
        command = [self._python, "-c", "import cupy; print(cupy.cuda.runtime.getDeviceCount())"]
        try:
            finished = subprocess.run(
                command, env=self._environment, capture_output=True, text=True, check=True, timeout=SECONDS_TO_COUNT
            )
            # Whatever is printed before.
            return int(finished.stdout.splitlines()[-1])
        except (subprocess.SubprocessError, ValueError, IndexError):
            return 0

    def _mpiexec(self) -> str | None:
        path = f"{Path(self._python).parent}{os.pathsep}{self._environment.get('PATH', '')}"
        return shutil.which("mpiexec", path=path)

    def _command(self, part: Part, results: Results) -> list[str]:
        tiny, benchmarks = ["--tiny"] if self._options.tiny else [], Path(__file__).parent
        if part.steps:
            steps = [*part.steps, *(TINY_STEPS if tiny else ()), "--results", str(results.path)]
            return [self._python, str(benchmarks / "gpu_step.py"), *steps]
        command = [self._python, str(benchmarks / "card_check.py"), "--part", part.module, str(results.path), *tiny]
        ranks = [str(self._mpiexec()), "-n", str(self._cards)] if part.name == "ranks" else []
        return [*ranks, *command]


@contextmanager
def process_group(command: list[str], environment: dict[str, str], output: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command in the checkout; when the block is left, end it with all that it has started."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    download = f"python3 -m pip download --only-binary :all: --python-version {version} -d wheels"
    description = (__doc__ or "").format(download=f"{download} \\\n        {' '.join(wanted.OFTEN_MISSING)}")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels, from which what is missing is installed")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--output", type=Path, default=Path("card-check"), help="the folder for what is found")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="these parts alone")
    parser.add_argument("--tiny", action="store_true", help="small models on an emulated card")
    parser.add_argument("--part", nargs=2, metavar=("MODULE", "RESULTS"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.part:
        module, results = options.part
        sys.exit(not import_module(f"card.{module}").check(Results(Path(results)), options.tiny))
    # As when it is interrupted by hand: what a part has started ends, and what it has found stays.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check = Check(options)
    try:
        sys.exit(not check.run())
    finally:
        check.report.save()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
