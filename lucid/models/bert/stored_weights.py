"""The weights in a model's folder: which tensors its files hold, and which parameters of a BERT these are.

The headers of the files say this. So names, shapes and dtypes are known to fit before anything is allocated.
"""

import shlex
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16, which safetensors then reads
import numpy as np
import safetensors

from lucid.errors import CheckpointError, some
from lucid.files import check_is_file, read_bytes, reason_of
from lucid.json_values import parse_json
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.hub import WEIGHTS_FILE
from lucid.models.bert.shapes import LAYER, parameter_shapes

_INDEX_FILE = "model.safetensors.index.json"

# The parts that a folder may lack, because a model for another task has none of them: their parameters' prefixes.
PARTS = {"pooler": "bert.pooler.", "MLM head": "cls.predictions.", "NSP head": "cls.seq_relationship."}

_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put between the names of modules.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The modules of an encoder, which transformers saves without a prefix if it has no head.
_ENCODER = {"embeddings", "encoder", "pooler"}
# Buffers of transformers, which are not weights.
_BUFFERS = {"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"}
# The decoder of the MLM head repeats other parameters, under these names.
_TIED = {
    "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}

# Makes a safetensors file of the pickles in the folder that is its argument.
_CONVERSION = (
    "import pathlib, sys, torch, safetensors.torch as s; folder, w = pathlib.Path(sys.argv[1]), {}; "
    "[w.update(torch.load(f, 'cpu', weights_only=True)) for f in folder.glob('pytorch_model*.bin')]; "
    f"s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, folder / '{WEIGHTS_FILE}', {{'format': 'pt'}})"
)


@dataclass(frozen=True)
class _Tensor:
    """A tensor in a file: its name there and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class StoredWeights:
    """The weights in `folder`, by the names of a `BERTForPreTraining`.

    `missing` has the keys of `PARTS` that the folder lacks. `left_out` has the tensors that are no part of a BERT for
    pretraining, such as the head of a classifier, by their names in today's transformers.
    """

    folder: Path
    tensors: Mapping[str, _Tensor]
    missing: tuple[str, ...]
    left_out: Mapping[str, _Tensor]

    def read(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Return the parameters whose names begin with `prefix`, float32.

        Raises `CheckpointError` if a tied parameter has two values.
        """
        return self._read([name for name in self.tensors if _TIED.get(name, name).startswith(prefix)])

    def of_encoder(self) -> "StoredWeights":
        """Return what the folder has for a BERT without heads."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name.startswith("bert.")}
        missing = tuple(part for part in self.missing if PARTS[part].startswith("bert."))
        return replace(self, tensors=tensors, missing=missing)

    def parameter(self, name: str) -> np.ndarray:
        """Return one parameter, float32, and read no others. Raises `CheckpointError` as `read` does."""
        return self._read([stored for stored in self.tensors if _TIED.get(stored, stored) == name])[name]

    def head(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
        """Return those of the `left_out` tensors, float32, that are a head with these names and shapes.

        None if the folder has no such head. Raises `CheckpointError` if a file cannot be read.
        """
        found = {name: self.left_out[name] for name in shapes if name in self.left_out}
        if {name: tensor.shape for name, tensor in found.items()} != dict(shapes):
            return None
        values = {}
        for name, tensor in found.items():
            with _opened(tensor.file) as file:
                values[name] = file.get_tensor(tensor.name).astype(np.float32, copy=False)
        return values

    def _read(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """Return the parameters that are stored under these names."""
        state: dict[str, np.ndarray] = {}
        for path in {self.tensors[name].file: None for name in names}:
            with _opened(path) as file:
                for name in names:
                    tensor = self.tensors[name]
                    if tensor.file == path:
                        _add(state, name, file.get_tensor(tensor.name).astype(np.float32, copy=False), path)
        return state

    def is_missing(self, parameter: str) -> bool:
        """Return whether a parameter belongs to a part that the folder lacks."""
        return parameter.startswith(tuple(PARTS[part] for part in self.missing))

    def remarks(self) -> list[str]:
        """Return a sentence about the parts that are missing, and one about the tensors that are left out."""
        missing = [f"{self.folder} has no {in_words(self.missing)}: newly initialised"] if self.missing else []
        return missing + self.remarks_on_the_rest()

    def remarks_on_the_rest(self) -> list[str]:
        """Return a sentence about the tensors that are left out."""
        if not self.left_out:
            return []
        names = sorted(tensor.name for tensor in self.left_out.values())
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return [
            f"{self.folder} also holds {', '.join(names[:4])}{more}: left out, as no part of a BERT for pretraining"
        ]


def in_words(parts: tuple[str, ...]) -> str:
    """Return names as words: `pooler, MLM head and NSP head`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def stored_weights(folder: Path, config: BERTConfig) -> StoredWeights:
    """Return the weights in `folder`. Raises `CheckpointError` if they are not a BERT's of the shape of `config`."""
    tensors: dict[str, _Tensor] = {}
    left_out: dict[str, _Tensor] = {}
    source = _source(folder)
    for tensor in _tensors(source):
        name = _current_name(tensor.name)
        if not name.startswith(("bert.", "cls.")):
            left_out[name] = tensor
        elif name in tensors:
            raise CheckpointError(f"{source} holds {name} twice: as {tensors[name].name} and as {tensor.name}")
        elif name not in _BUFFERS:
            tensors[name] = tensor
    if not tensors:
        other = next(iter(left_out.values()), None)
        names = f": its tensors have other names, such as {other.name}" if other else ""
        raise CheckpointError(f"{source} holds no weights of a BERT{names}")
    return StoredWeights(folder, tensors, _missing_parts(source, tensors, config), left_out)


def _missing_parts(source: Path, tensors: Mapping[str, _Tensor], config: BERTConfig) -> tuple[str, ...]:
    """Return the keys of `PARTS` that `tensors` lack. Raises `CheckpointError` if they do not fit `config`."""
    # The number of layers comes first, because it bounds the number of parameters that are compared.
    layers = len({name.removeprefix(LAYER).split(".")[0] for name in tensors if name.startswith(LAYER)})
    if layers != config.num_hidden_layers:
        raise CheckpointError(f"{source} holds {layers} layers, config.json asks for {config.num_hidden_layers}")
    shapes = dict(parameter_shapes(config))
    for name, tensor in tensors.items():
        shape = shapes.get(_TIED.get(name, name))
        if shape is None:
            raise CheckpointError(f"{tensor.file}: {tensor.name} is not a parameter of a BERT for pretraining")
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: {tensor.name} has shape {tensor.shape}, config.json asks for {shape}"
            )
        if tensor.dtype not in _DTYPES:
            taken = ", ".join(_DTYPES.values())
            raise CheckpointError(f"{tensor.file}: {tensor.name} has dtype {tensor.dtype}; weights have {taken}")
    held = {_TIED.get(name, name) for name in tensors}
    missing = tuple(part for part, prefix in PARTS.items() if not any(name.startswith(prefix) for name in held))
    absent = tuple(PARTS[part] for part in missing)
    lost = [name for name in shapes if name not in held and not name.startswith(absent)]
    if lost:
        raise CheckpointError(f"{source} lacks {some(lost)}")
    return missing


def _current_name(name: str) -> str:
    """Return the name that a `BERTForPreTraining` of today's transformers has for a tensor."""
    modules = [module for module in name.split(".") if module not in _WRAPPERS]
    if modules and modules[0] in _ENCODER:
        modules.insert(0, "bert")
    name = ".".join(modules)
    for old, new in _OLD_NAMES.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _add(state: dict[str, np.ndarray], name: str, array: np.ndarray, path: Path) -> None:
    owner = _TIED.get(name, name)
    if owner in state and not np.array_equal(state[owner], array):
        copy = next(copy for copy, tied in _TIED.items() if tied == owner)
        raise CheckpointError(f"{path}: {copy} differs from {owner}; only models that tie them are supported")
    state[owner] = array


def _source(folder: Path) -> Path:
    """Return the file of the folder's weights, or the index of several. Raises `CheckpointError` if there is none."""
    whole, index = folder / WEIGHTS_FILE, folder / _INDEX_FILE
    if not whole.exists() and index.exists():
        return index
    if not whole.exists():
        raise CheckpointError(f"{whole} does not exist{_advice(folder)}")
    return whole


def _tensors(source: Path) -> Iterator[_Tensor]:
    """Yield what the headers of the files say, whatever the names. Raises `CheckpointError`."""
    if source.name == WEIGHTS_FILE:
        yield from _header(source)
        return
    for path, listed in _shards(source).items():
        tensors = list(_header(path))
        if {tensor.name for tensor in tensors} != listed:
            other = min({tensor.name for tensor in tensors} ^ listed)
            raise CheckpointError(f"{path} and {source.name} differ: only one of them names {other}")
        yield from tensors


def _shards(index: Path) -> dict[Path, set[str]]:
    """Return the files that an index names, and the names of the tensors in each."""
    try:
        places = parse_json(read_bytes(index))["weight_map"].items()
        shards: dict[Path, set[str]] = {}
        for name, file in places:
            if Path(file).name != file or Path(file).suffix != ".safetensors":
                raise ValueError(f"{file!r} is not the name of a safetensors file beside it")
            shards.setdefault(index.with_name(file), set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} does not say which tensor lies in which file: {reason_of(error)}") from error
    return shards


def _header(path: Path) -> Iterator[_Tensor]:
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118  # no dict
            part = file.get_slice(name)
            yield _Tensor(path, name, tuple(part.get_shape()), part.get_dtype())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        check_is_file(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error


def _advice(folder: Path) -> str:
    """Return how to convert the pickles in `folder`, if there are any."""
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if not pickles:
        return ""
    command = f'python -c "{_CONVERSION}" {shlex.quote(str(folder))}'
    return (
        f"; {pickles[0]} is a pickle, which lucid does not read. Where PyTorch and safetensors are installed, this "
        f"converts it: {command}"
    )
