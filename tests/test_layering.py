"""Which package may import which (docs/architecture.md has the table)."""

import ast
import re
from pathlib import Path

import pytest
from isolation import REPOSITORY

import lucid

LUCID = Path(lucid.__file__).parent

# What each package may import, besides itself and `errors`. The longest name that fits counts; `""` is
# lucid/__init__.py.
EVERYTHING = {""}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "files": set(),
    "unpacking": {"files"},
    "output": set(),
    "json_values": set(),
    "backend": set(),
    "gpu_async": {"backend"},
    "random": {"backend"},
    "kernels": {"files", "backend", "random"},
    "autograd": {"backend", "random", "kernels"},
    "nn": {"backend", "random", "kernels", "autograd"},
    "creation": {"backend", "random", "autograd", "nn"},
    "tensor_files": {"files", "backend", "autograd"},
    "models": {
        "files",
        "json_values",
        "tensor_files",
        "launch.limits",
        "backend",
        "random",
        "kernels",
        "autograd",
        "nn",
    },
    "optim": {"backend", "kernels", "nn.parameters"},
    "data": {"files", "unpacking", "json_values", "backend", "random", "kernels.masking"},
    "preparation": {"files", "json_values", "backend", "data.manifest", "data.tokenizer", "data.unspaced"},
    "preparation.inputs": {"files", "unpacking", "json_values", "backend", "data.manifest", "data.tokenizer"},
    "launch": {"files", "output"},
    "distributed": {"output", "backend", "launch"},
    "distributed.communicators": {"files", "backend", "launch"},
    "distributed.health": {"backend", "version", "distributed.communicators", "launch"},
    "distributed.parallel": {"backend", "autograd", "nn.module", "nn.parameters", "distributed.communicators"},
    "training": {
        "files",
        "json_values",
        "backend",
        "gpu_async",
        "random",
        "kernels",
        "nn",
        "models",
        "optim",
        "data",
        "launch.limits",
        "launch.rank_status",
        "distributed",
    },
    "training.checkpoints": {
        "files",
        "json_values",
        "models",
        "optim",
        "distributed",
        "training.product_choices",
    },
    "training.config": {
        "files",
        "kernels",
        "models",
        "data",
        "distributed",
        "training.checkpoints",
        "training.formatting",
    },
    "training.counts": {"files", "json_values", "backend", "kernels", "data", "training.held_out"},
    "training.log": {
        "files",
        "json_values",
        "backend",
        "gpu_async",
        "kernels",
        "nn",
        "models",
        "distributed",
        "training.checkpoints",
        "training.micro_batches",
    },
    "training.explanations": {
        "backend",
        "data",
        "training.config",
        "training.corpora",
        "training.counts",
        "training.log",
    },
    "finetuning": {
        "files",
        "unpacking",
        "json_values",
        "backend",
        "random",
        "kernels",
        "models",
        "optim",
        "data",
        "distributed",
        "training",
    },
    "analysis": {
        "files",
        "json_values",
        "version",
        "backend",
        "kernels",
        "models",
        "data",
        "optim",
        "distributed",
        "training",
    },
    "cli": EVERYTHING,
    "__main__": {"cli"},
    "": EVERYTHING,
}

# Libraries that only some files may load.
GUARDED = {
    "cupy": {"backend", "kernels.cuda", "distributed.communicators.nccl"},
    "cupyx": {"backend", "kernels.cuda", "distributed.communicators.nccl"},
    "numba": {"kernels.cpu"},
    "mpi4py": {"distributed.communicators", "distributed.communicators.announcement"},
}


def module_of(path):
    """The dotted name of a file below lucid, without `lucid.`; "" for lucid/__init__.py itself."""
    parts = path.relative_to(LUCID).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    path = LUCID.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(source):
    """Every dotted name that the source imports, at its top or inside a function, whole: `lucid.backend`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in lucid"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if is_module(whole.removeprefix("lucid.")) else node.module


def within(module, package):
    return package in ("", module) or module.startswith(f"{package}.")


def package_of(module):
    return max((package for package in MAY_IMPORT if within(module, package)), key=len)


def forbidden_arrows(module, source):
    """The imports of `source` that `module` may not make."""
    package = package_of(module)
    allowed = MAY_IMPORT[package] | {"errors", package}
    for name in imports_of(source):
        library, _, inside = name.partition(".")
        if library in GUARDED:
            permitted = any(within(module, file) for file in GUARDED[library])
        else:
            permitted = library != "lucid" or any(within(inside, target) for target in allowed)
        if not permitted:
            yield f"lucid.{module} -> {name}"


@pytest.mark.parametrize("path", sorted(LUCID.rglob("*.py")), ids=module_of)
def test_a_module_imports_only_what_its_package_may(path):
    assert list(forbidden_arrows(module_of(path), path.read_text())) == []


@pytest.mark.parametrize("path", sorted(LUCID.iterdir()), ids=lambda path: path.name)
def test_every_package_is_in_the_table(path):
    assert path.name in ("__init__.py", "__init__.pyi", "__pycache__", "py.typed") or path.stem in MAY_IMPORT


def test_a_package_needs_all_that_it_may_import():
    unused = {package: set(targets) for package, targets in MAY_IMPORT.items()}
    for path in LUCID.rglob("*.py"):
        names = [name.removeprefix("lucid.") for name in imports_of(path.read_text())]
        targets = unused[package_of(module_of(path))]
        targets -= {target for target in targets if any(within(name, target) for name in names)}
    assert {package: targets for package, targets in unused.items() if targets} == {}


def test_the_architecture_shows_the_same_table():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\| ([^|]+) \|$", text.partition("## Packages")[2], re.MULTILINE)
    shown = {
        name.removesuffix(".py").strip("/").replace("/", "."): set(imports.split(", ")) - {"nothing"}
        for names, imports in rows
        for name in re.findall("`([a-z_/]+(?:[.]py)?)`", names)
    }
    expected = {name: imports for name, imports in MAY_IMPORT.items() if name not in ("", "cli", "__main__")}
    assert {name: shown.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("autograd.engine", "import lucid.nn"),
        ("autograd.engine", "from lucid import nn"),
        ("autograd.engine", "from lucid import Tensor"),
        ("autograd.engine", "import lucid"),
        ("nn.layers", "def f():\n    from lucid.models.bert import config"),
        ("optim.adamw", "from lucid.nn import functional"),
        ("data.loader", "from lucid.autograd import Tensor"),
        ("data.loader", "from lucid.kernels import reference"),
        ("data.shards", "from lucid.preparation import shards"),
        ("preparation.stages", "from lucid.data import Corpus"),
        ("training.setup", "from lucid.preparation import prepare"),
        ("distributed.health.guard", "from lucid.nn.parameters import flatten"),
        ("distributed.parallel.data_parallel", "from lucid.models import bert"),
        ("distributed.communicators.mpi", "from lucid.distributed.health import guard"),
        ("distributed.health.watchdog", "from lucid.distributed.parallel import buckets"),
        ("training.trainer", "from lucid.analysis import plots"),
        ("training.checkpoints.store", "from lucid.training.config import load"),
        ("training.config.sections", "from lucid.training import setup"),
        ("errors", "import lucid.backend"),
        ("nn.layers", "import cupy"),
        ("kernels.reference", "import numba"),
        ("distributed.health.guard", "def f():\n    from mpi4py import MPI"),
    ],
)
def test_a_forbidden_arrow_is_found(module, source):
    assert len(list(forbidden_arrows(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("", "from lucid import nn"),
        ("cli.train", "import lucid.training.trainer"),
        ("nn.layers", "from lucid import backend, errors"),
        ("optim.adamw", "from lucid.nn.parameters import Segment"),
        ("backend", "import cupy"),
        ("kernels.cuda.gemm", "from cupy import cuda"),
        ("distributed.communicators.mpi", "from mpi4py import MPI"),
        ("training.trainer", "from lucid.distributed import connect"),
    ],
)
def test_an_allowed_arrow_is_not(module, source):
    assert list(forbidden_arrows(module, source)) == []
