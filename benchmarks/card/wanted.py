"""What a check of a card imports, what of it is missing, and how it is had from a folder of wheels, without a network.

Nothing but the standard library is imported here.
"""

import json
import os
import re
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Collection, Iterable
from pathlib import Path

# Each table has modules, and the distributions that they come with.
# Steps on a card need these.
STEPS = {
    "annotated_types": "annotated-types", "cupy": "cupy-cuda13x", "lazy_loader": "lazy-loader",
    "ml_dtypes": "ml_dtypes", "numpy": "numpy", "pydantic": "pydantic", "pydantic_core": "pydantic-core",
    "safetensors": "safetensors", "threadpoolctl": "threadpoolctl", "tokenizers": "tokenizers",
    "typing_inspection": "typing-inspection",
}  # fmt: skip
# lucid's commands need these beside.
COMMANDS = {
    "markdown_it": "markdown-it-py", "mpi4py": "mpi4py", "numba": "numba", "rich": "rich", "scipy": "scipy",
    "sentencex": "sentencex", "typer": "typer", "yaml": "pyyaml", "zstandard": "zstandard",
}  # fmt: skip
# Tests need these.
TESTS = {
    "hypothesis": "hypothesis", "pytest": "pytest", "pytest_mpi": "pytest-mpi", "pytest_timeout": "pytest-timeout",
    "sortedcontainers": "sortedcontainers",
}  # fmt: skip
# Several ranks need an MPI library, which this module of mpi4py loads.
RANKS = {"mpi4py.MPI": "mpich"}
# PyTorch's side needs these.
TORCH = {"torch": "torch", "transformers": "transformers"}
ALL = STEPS | COMMANDS | TESTS | RANKS | TORCH

# What is missing where PyTorch and CuPy are: what each of them needs comes with it.
OFTEN_MISSING = (
    "pydantic", "sentencex", "zstandard", "hypothesis", "pytest-mpi", "pytest-timeout", "mpich",
)  # fmt: skip

# All modules may take so long together, and each that is tried again so long alone.
SECONDS_FOR_ALL, SECONDS_FOR_ONE = 60, 20

# Answers go to a file, line by line: modules print what they like, and may end the process.
_TRY = """
import importlib, json, sys
with open(sys.argv[1], "w") as answers:
    for name in sys.argv[2:]:
        try:
            importlib.import_module(name)
            why = ""
        except BaseException as error:
            why = f"{type(error).__name__}: {error}"
        print(json.dumps([name, why]), file=answers, flush=True)
"""


def missing(python: str, names: Collection[str], environment: dict[str, str]) -> dict[str, str]:
    """Return which modules an interpreter cannot import, and why.

    One process imports them all. Those that it does not come to, as one of them has ended it or hangs, have a process
    each.
    """
    answers, _ = _asked(python, names, environment, SECONDS_FOR_ALL)
    for name in names:
        if name not in answers:
            of_one, ended = _asked(python, [name], environment, SECONDS_FOR_ONE)
            answers[name] = of_one.get(name, ended)
    return {name: answers[name] for name in names if answers[name]}


def _asked(
    python: str, names: Iterable[str], environment: dict[str, str], seconds: float
) -> tuple[dict[str, str], str]:
    """Return why each module cannot be imported, "" if it can, for those that there is an answer for.

    Then say how the process ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, said = Path(folder) / "answers", Path(folder) / "said"
        with said.open("wb") as output:
            try:
                status = subprocess.run(
                    [python, "-c", _TRY, str(path), *names], env=environment, timeout=seconds, check=False,
                    stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                ).returncode  # fmt: skip
                ended = f"the import ended the process with status {status}"
            except subprocess.TimeoutExpired:
                ended = f"the import took more than {seconds:g} s"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        last = said.read_text(encoding="utf-8", errors="replace").strip()[-200:]
    return dict(json.loads(line) for line in lines), f"{ended}: {last}" if last else ended


def sentence(names: Iterable[str]) -> str:
    """Say what is missing, and how it is brought along."""
    distributions = sorted({ALL[name] for name in names})
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    download = f"python3 -m pip download --only-binary :all: --python-version {version} -d wheels"
    return (
        f"missing here: {', '.join(sorted(names))}; on a machine with a network, {download} {' '.join(distributions)}; "
        "then bring the folder here, and say --wheels wheels"
    )


def install(wheels: Path, names: Iterable[str], folder: Path) -> str:
    """Make an environment in `folder` that has all that this one has, and what `wheels` holds of these modules.

    Return its interpreter. Raises `OSError` or `subprocess.CalledProcessError` if that cannot be done.
    """
    venv.create(folder, with_pip=False, clear=True)
    python = str(folder / "bin" / "python")
    [packages] = folder.glob("lib/python*/site-packages")
    # Not `system_site_packages`: this environment may be one of these itself.
    ours = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in ours if os.path.isdir(path)]
    (packages / "zz_ours.pth").write_text("".join(lines), encoding="utf-8")
    wanted = {normal(ALL[name]) for name in names}
    chosen = [str(path) for path in sorted(wheels.glob("*.whl")) if normal(path.name.partition("-")[0]) in wanted]
    if chosen:
        command = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install"]
        options = ["--quiet", "--no-index", "--no-deps"]
        subprocess.run([*command, *options, *chosen], check=True, capture_output=True, text=True)
    return python


def normal(distribution: str) -> str:
    return re.sub("[-_.]+", "-", distribution).lower()
