"""The arrows between the rooms of the house: who may import whom (docs/architecture.md holds the table)."""

import ast
from pathlib import Path

import pytest

import lucid

HOUSE = Path(lucid.__file__).parent

# What each room may import beside itself and `errors`; the longest name that fits counts. `""` is the face.
EVERYTHING = {""}
BELOW_MODELS = {"backend", "random", "kernels", "autograd", "nn"}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "files": set(),
    "backend": set(),
    "streams": {"backend"},
    "random": {"backend"},
    "kernels": {"files", "backend", "random"},
    "autograd": {"backend", "random", "kernels"},
    "nn": {"backend", "random", "kernels", "autograd"},
    "models": BELOW_MODELS | {"files"},
    "optim": {"backend", "kernels", "nn.parameters"},
    "data": {"files", "backend", "random", "kernels.masking"},
    "preparation": {"files", "backend", "data.manifest", "data.tokenizer"},
    "distributed": {"backend"},
    "distributed.software": {"version"},
    "distributed.data_parallel": {"backend", "nn.module", "nn.parameters"},
    "distributed.buckets": {"backend", "autograd", "nn.parameters"},
    "distributed.exact": {"backend", "autograd", "nn.parameters"},
    "distributed.sharded": {"backend", "autograd", "nn.module", "nn.parameters"},
    "training": BELOW_MODELS | {"files", "streams", "models", "optim", "data", "distributed"},
    "cli": EVERYTHING,
    "__main__": {"cli"},
    "": EVERYTHING,
}

# Libraries that only some files may load.
GUARDED = {
    "cupy": {"backend", "kernels.cuda", "distributed.backends.nccl"},
    "cupyx": {"backend", "kernels.cuda", "distributed.backends.nccl"},
    "numba": {"kernels.cpu"},
    "mpi4py": {"distributed.backends", "distributed.topology"},
}


def module_of(path):
    """The dotted name of a file below lucid, without `lucid.`; "" for lucid/__init__.py itself."""
    parts = path.relative_to(HOUSE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name):
    path = HOUSE.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(source):
    """Every dotted name that the source imports, at its top or inside a function, whole: `lucid.backend`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute in this house"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if is_module(whole.removeprefix("lucid.")) else node.module


def within(module, room):
    return module == room or room == "" or module.startswith(f"{room}.")


def forbidden_arrows(module, source):
    """The imports of `source` that `module` may not make."""
    room = max((room for room in MAY_IMPORT if within(module, room)), key=len)
    allowed = MAY_IMPORT[room] | {"errors", room.partition(".")[0]}
    for name in imports_of(source):
        library, _, inside = name.partition(".")
        if library in GUARDED:
            permitted = any(within(module, file) for file in GUARDED[library])
        else:
            permitted = library != "lucid" or any(within(inside, target) for target in allowed)
        if not permitted:
            yield f"lucid.{module} -> {name}"


@pytest.mark.parametrize("path", sorted(HOUSE.rglob("*.py")), ids=module_of)
def test_a_module_imports_only_what_its_room_may(path):
    assert list(forbidden_arrows(module_of(path), path.read_text())) == []


@pytest.mark.parametrize("path", sorted(HOUSE.iterdir()), ids=lambda path: path.name)
def test_every_room_is_in_the_table(path):
    assert path.name in ("__init__.py", "__init__.pyi", "__pycache__", "py.typed") or path.stem in MAY_IMPORT


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
        ("data.shards", "from lucid.preparation import writer"),
        ("preparation.stages", "from lucid.data import Corpus"),
        ("training.setup", "from lucid.preparation import prepare"),
        ("distributed.guard", "from lucid.nn.parameters import flatten"),
        ("distributed.data_parallel", "from lucid.models import bert"),
        ("training.trainer", "import lucid.cli"),
        ("errors", "import lucid.backend"),
        ("nn.layers", "import cupy"),
        ("kernels.reference", "import numba"),
        ("distributed.guard", "def f():\n    from mpi4py import MPI"),
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
        ("distributed.backends.mpi", "from mpi4py import MPI"),
        ("training.trainer", "from lucid.distributed import connect"),
    ],
)
def test_an_allowed_arrow_is_not(module, source):
    assert list(forbidden_arrows(module, source)) == []
