"""What a check of a card imports, what of it is missing, and how it is had from a folder of wheels, without a network.

Nothing but the standard library is imported here.
"""

import json
import os
import re
import site
import subprocess
import sys
import venv
from collections.abc import Collection, Iterable
from pathlib import Path

# Modules, and the distributions that they come with: what steps on a card need,
STEPS = {
    "annotated_types": "annotated-types", "cupy": "cupy-cuda13x", "lazy_loader": "lazy-loader",
    "ml_dtypes": "ml_dtypes", "numpy": "numpy", "pydantic": "pydantic", "pydantic_core": "pydantic-core",
    "safetensors": "safetensors", "threadpoolctl": "threadpoolctl", "tokenizers": "tokenizers",
    "typing_inspection": "typing-inspection",
}  # fmt: skip
# what lucid's commands need beside,
COMMANDS = {
    "mpi4py": "mpi4py", "numba": "numba", "rich": "rich", "scipy": "scipy", "sentencex": "sentencex",
    "typer": "typer", "yaml": "pyyaml", "zstandard": "zstandard",
}  # fmt: skip
# what tests do,
TESTS = {
    "hypothesis": "hypothesis", "pytest": "pytest", "pytest_mpi": "pytest-mpi", "pytest_timeout": "pytest-timeout",
    "sortedcontainers": "sortedcontainers",
}  # fmt: skip
# what several ranks need, of which mpi4py finds the library alone,
RANKS = {"mpi4py.MPI": "mpich"}
# what PyTorch's side needs, and what attention by cuDNN does.
TORCH = {"torch": "torch", "transformers": "transformers"}
CUDNN = {"cudnn": "nvidia-cudnn-frontend"}
ALL = STEPS | COMMANDS | TESTS | RANKS | TORCH | CUDNN

# What is missing where PyTorch and CuPy are: what each of them needs comes with it.
OFTEN_MISSING = (
    "pydantic", "sentencex", "zstandard", "hypothesis", "pytest-mpi", "pytest-timeout", "mpich",
    "nvidia-cudnn-frontend==1.28.*",
)  # fmt: skip

SECONDS_TO_IMPORT = 100

_TRY = """
import importlib, json, sys
missing = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except BaseException as error:
        missing[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(missing))
"""


def missing(python: str, names: Collection[str], environment: dict[str, str]) -> dict[str, str]:
    """Return which modules an interpreter cannot import, and why."""
    command = [python, "-c", _TRY, json.dumps(list(names))]
    try:
        finished = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=SECONDS_TO_IMPORT
        )
    except subprocess.SubprocessError as error:
        # One of them has ended the process, or hangs.
        return dict.fromkeys(names, f"{error} {getattr(error, 'stderr', '') or ''}"[-200:])
    return json.loads(finished.stdout.splitlines()[-1])


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
