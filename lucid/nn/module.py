"""`Parameter` and `Module`: a tree of named parameters that behaves as in PyTorch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lucid import backend
from lucid.autograd import Tensor, no_grad, recompute
from lucid.autograd.function import Gradient
from lucid.errors import no_such_name
from lucid.kernels.targets import Target

if TYPE_CHECKING:
    from lucid.nn.parameters import FlatParameters


class Parameter(Tensor):
    """A leaf that is trained. If several modules hold the same one, it is counted and updated once.

    `flatten` may give it a copy in bfloat16 to compute with; `data` stays float32. It may also put rows of zeros behind
    the values, the copy and the gradient, so that their number is a multiple of `row_multiple`.
    """

    # Values, copy and gradient buffer with the rows of zeros, once `flatten` has made them.
    _padded_data: backend.Array | None = None
    _internal = Tensor._internal.union(
        ("flat", "in_flat_buffers", "joined", "padded", "row_multiple", "use_bfloat16_copy")
    )
    # The buffers that `flatten` has moved it to.
    flat: "FlatParameters | None" = None
    # The parameters that `Module.join` has joined with it, itself included.
    joined: "tuple[Parameter, ...]" = ()

    def __init__(self, data: backend.Array) -> None:
        super().__init__(data, requires_grad=True)
        self.row_multiple = 1
        self._padded_copy: backend.Array | None = None
        self._padded_gradient: backend.Array | None = None

    @property
    def data(self) -> backend.Array:
        """The values. After `flatten` to assign another array is a `RuntimeError`: the buffers would not follow."""
        return self._data

    @data.setter
    def data(self, data: backend.Array) -> None:
        if self.in_flat_buffers:
            raise RuntimeError(
                "an optimizer or DistributedDataParallel works on the flat buffers of these parameters: write to the "
                "elements, move or convert the module before you make these, or load its state_dict() into another one"
            )
        self._data = data

    @property
    def linear_copy(self) -> backend.Array:
        """The array that linear maps compute with: the bfloat16 copy if there is one, or else `data`."""
        return self.data if self._padded_copy is None else self._own(self._padded_copy)

    @property
    def compute_copy(self) -> backend.Array:
        """The array that other operations compute with: the copy of a matrix on a GPU, or else `data`.

        On the CPU only products compute in bfloat16.
        """
        return self.data if self.ndim < 2 or self.device == backend.CPU else self.linear_copy

    @property
    def padded(self) -> Tensor:
        """This parameter with the rows of zeros behind it, or itself if it has none.

        Operations that take it contribute to the gradient of the parameter. They give the rows of zeros a gradient of
        0.
        """
        if self._padded_data is None or self._padded_data.shape == self.shape:
            return self
        copy = self._padded_data if self._padded_copy is None else self._padded_copy
        return _Padded(self, self._padded_data, copy)

    def use_bfloat16_copy(self, copy: backend.Array) -> None:
        """Make linear maps, and on a GPU other operations, compute with `copy`, of this shape but for padding.

        The caller keeps it up to date.
        """
        self._padded_copy = copy

    def use_buffers(self, data: backend.Array, gradient: backend.Array) -> None:
        """Move values and gradient into these arrays: views into flat buffers, with rows of zeros behind if any."""
        super().use_buffers(self._own(data), self._own(gradient))
        self._padded_data, self._padded_gradient = data, gradient

    def collect_gradient_in(self, buffer: backend.Array) -> None:
        """Make the next backward overwrite `buffer`, which has as many rows as the gradient buffer so far."""
        super().collect_gradient_in(self._own(buffer))
        self._padded_gradient = buffer

    def _own(self, padded: backend.Array) -> backend.Array:
        return padded if padded.shape == self.shape else padded[: len(self)]

    def gradient_target(self, shape: tuple[int, ...]) -> Target:
        """Return where to write or add a contribution of `shape`, which is this parameter's or `padded`'s."""
        padded = self._padded_gradient
        if padded is None or padded.shape == self.shape:
            return super().gradient_target(shape)
        target = super().gradient_target(self.shape)
        if shape == padded.shape:
            return target._replace(out=padded)
        if not target.accumulate:
            padded[len(self) :] = 0
        return target

    def accumulate(self, contribution: Gradient) -> None:
        if not isinstance(contribution, Target) or contribution.out is not self._padded_gradient:
            super().accumulate(contribution)

    @property
    def in_flat_buffers(self) -> bool:
        """Whether `flatten` has moved this parameter."""
        return self._padded_data is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Parameter":
        """Return a parameter with these values in memory of its own. No optimizer and no reduction knows it."""
        copy = type(self)(self.data.copy())
        memo[id(self)] = copy
        copy.requires_grad, copy.row_multiple = self.requires_grad, self.row_multiple
        copy.joined = deepcopy(self.joined, memo)
        return copy


class _Padded(Tensor):
    """A parameter with the rows of zeros behind it (`Parameter.padded`)."""

    def __init__(self, parameter: Parameter, data: backend.Array, linear_copy: backend.Array) -> None:
        super().__init__(data, parameter.requires_grad)
        self._parameter, self._linear_copy = parameter, linear_copy

    @property
    def linear_copy(self) -> backend.Array:
        return self._linear_copy

    @property
    def compute_copy(self) -> backend.Array:
        return self.data if self.ndim < 2 or self.device == backend.CPU else self._linear_copy

    @property
    def origin(self) -> Tensor:
        return self._parameter


class Module:
    """Base of all layers and models. Assigning a `Parameter` or a `Module` to an attribute registers it.

    Only another one, or None, may then be assigned to it: anything else is a `TypeError`, because the parameter that
    was trained and saved would not be the one that is used. After `flatten` a parameter cannot be replaced at all: this
    is a `RuntimeError`.
    """

    def __init__(self) -> None:
        self.training = True
        # Whether backward computes the intermediate results of this module again instead of keeping them (`recompute`).
        self.recomputed = False
        self._parameters: dict[str, Parameter] = {}
        self._modules: dict[str, Module] = {}

    if not TYPE_CHECKING:  # to mypy every name would be there

        def __getattr__(self, name):
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__} has no {name!r}")
            raise no_such_name(type(self).__name__, name, [*dir(type(self)), *vars(self)])

    def __setattr__(self, name: str, value: Any) -> None:
        self._unregister(name, value)
        if isinstance(value, Parameter):
            self._parameters[name] = value
        elif isinstance(value, Module):
            self._modules[name] = value
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._unregister(name, None)
        super().__delattr__(name)

    def _unregister(self, name: str, value: Any) -> None:
        """Forget the parameter or module `name`, if there is one, because `value` takes its place."""
        for kind, registered in (
            (Parameter, self.__dict__.get("_parameters", {})),
            (Module, self.__dict__.get("_modules", {})),
        ):
            present = registered.get(name)
            if present is None or present is value:
                continue
            if not (value is None or isinstance(value, Parameter | Module)):
                raise TypeError(
                    f"{name} is a {type(present).__name__}, which a {type(value).__name__} cannot replace: assign a "
                    f"{'Parameter' if isinstance(present, Parameter) else 'Module'} or None, or write to its data"
                )
            if isinstance(present, Parameter) and present.in_flat_buffers:
                raise RuntimeError(
                    f"{name} is in flat buffers, on which an optimizer or DistributedDataParallel works: replace it "
                    "before you make these, or write to its data"
                )
            if not isinstance(value, kind):  # or else it takes the place of the present one in the order, too
                del registered[name]

    def join(self, *parameters: Parameter) -> None:
        """Make `flatten` place these parameters without gaps, so that kernels may take them as one array.

        Either all have one dimension or all have more, and no parameter is joined twice.
        """
        for parameter in parameters:
            parameter.joined = parameters

    def forward(self, *inputs: Any, **options: Any) -> Any:
        raise NotImplementedError

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if not self.recomputed:
            return self.forward(*inputs, **options)
        # Backward may run it again when the caller has switched to another mode.
        return recompute(partial(self._forward_in, self._modes()), *inputs, **options)

    def _forward_in(self, modes: "list[tuple[Module, bool]]", *inputs: Any, **options: Any) -> Any:
        """Call `forward` in these modes."""
        before = self._modes()
        _set(modes)
        try:
            return self.forward(*inputs, **options)
        finally:
            _set(before)

    def _modes(self) -> "list[tuple[Module, bool]]":
        """Return this module and all below it, each with whether it is training."""
        return [(module, module.training) for _, module in self.named_modules()]

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """Yield this module and all below it with their dotted names, in order of registration."""
        yield prefix, self
        for name, module in self._modules.items():
            yield from module.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self, keep_shared: bool = False) -> Iterator[tuple[str, Parameter]]:
        """Yield each parameter once under its first dotted name; under every name with `keep_shared`."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if keep_shared or id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield f"{prefix}.{name}" if prefix else name, parameter

    def parameters(self) -> "ModuleParameters":
        """Return an iterator over the parameters, each once."""
        return ModuleParameters(self)

    def num_parameters(self) -> int:
        """Return the number of elements of all parameters; a shared parameter counts once."""
        return sum(parameter.size for parameter in self.parameters())

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return every parameter by name as a NumPy array; on the CPU they share the parameters' memory."""
        return {name: parameter.numpy() for name, parameter in self.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy arrays or tensors into the parameters of the same names, and into their copies in bfloat16.

        Raises a `ValueError` that names missing and unexpected parameters and wrong shapes, before copying anything.
        """
        parameters = dict(self.named_parameters())
        shared = dict(self.named_parameters(keep_shared=True))
        missing = sorted(parameters.keys() - state.keys())
        unexpected = sorted(state.keys() - shared.keys())
        if missing or unexpected:
            raise ValueError(f"load_state_dict: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}")
        for name, value in state.items():
            if tuple(value.shape) != shared[name].shape:
                raise ValueError(f"load_state_dict: {name} has shape {tuple(value.shape)}, needs {shared[name].shape}")
        for name, parameter in parameters.items():
            values = state[name]
            array = values.data if isinstance(values, Tensor) else values
            parameter.data[...] = backend.to_device(array, parameter.device)
            if parameter.linear_copy is not parameter.data:
                parameter.linear_copy[...] = parameter.data

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on (or off) in this module and all below it, and return it."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Switch dropout off in this module and all below it, and return it."""
        return self.train(False)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Switch dropout off and record nothing inside the block. Each module has its earlier mode again afterwards."""
        before = self._modes()
        self.eval()
        try:
            with no_grad():
                yield
        finally:
            _set(before)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def to(self, target: "str | np.dtype | type") -> Self:
        """Move all parameters to a device ("cpu", "cuda:0") or a dtype, in place.

        Raises `RuntimeError` after `flatten` if this would change anything.
        """
        for parameter in self.parameters():
            moved = parameter.to(target)
            if moved is not parameter:
                parameter.replace_data(moved.data)
        return self

    @property
    def device(self) -> str:
        """The device of the parameters."""
        return next(self.parameters()).device

    def __repr__(self) -> str:
        children = [f"({name}): {module!r}".replace("\n", "\n  ") for name, module in self._modules.items()]
        inside = self.extra_repr()
        if children:
            inside = "\n  " + "\n  ".join(([inside] if inside else []) + children) + "\n"
        return f"{type(self).__name__}({inside})"

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows for this module."""
        return ""


def _set(modes: list[tuple[Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


class ModuleParameters(Iterator[Parameter]):
    """The parameters of `module`, each once. Who takes them, such as an optimizer, may ask `module` for their names."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self._named = module.named_parameters()

    def __next__(self) -> Parameter:
        return next(self._named)[1]


class ModuleList(Module):
    """Modules by number."""

    def __init__(self, modules: list[Module]) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            self._modules[str(number)] = module

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, number: int) -> Any:
        return list(self._modules.values())[number]

    def __len__(self) -> int:
        return len(self._modules)
