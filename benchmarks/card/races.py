"""Has compute-sanitizer look for races between the threads of kernels, of attention first, a few tests at a time."""

import subprocess
import sys
from pathlib import Path

from card.results import Results

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests" / "gpu"
SELECTED = (
    "TestAttention and second_run",
    "TestAttention and forward_and_backward",
    "TestAttention and packed_sequences",
    "TestOrder and second_run",
)
LINES_SHOWN = 6


def check(results: Results, tiny: bool) -> bool:
    """Add a line for each group of tests, and return whether nothing was found; tiny, only whether they are there."""
    sys.path.insert(0, str(TESTS))
    from test_sanitizer import FAILED, PYTEST, sanitizer

    path = sanitizer()
    if path is None:
        results.add(tests="all", found="left out: no compute-sanitizer is on the PATH, in CUDA_HOME or a wheel")
        return tiny
    clean = True
    for selected in SELECTED:
        command = [path, "--tool", "racecheck", "--error-exitcode", str(FAILED), "--target-processes", "all"]
        tests = [str(TESTS / "kernels"), "-k", f"card and {selected}"]
        finished = subprocess.run(
            [*command, sys.executable, "-c", PYTEST, *tests], cwd=ROOT, capture_output=True, text=True, check=False
        )
        said = [line for line in finished.stdout.splitlines() if line.startswith("=========")][-LINES_SHOWN:]
        results.add(tests=selected, found="nothing" if finished.returncode == 0 else "\n".join(said or ["failed"]))
        clean = clean and finished.returncode == 0
        print(finished.stdout[-5000:], finished.stderr[-5000:])
    return clean
