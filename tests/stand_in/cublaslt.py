"""Stands in for cuBLASLt on a machine without a GPU: the functions that lucid calls, over memory of the CPU.

They are C functions, made by ctypes out of methods, so that arguments are converted as they are for the library itself,
whatever types the caller has given them. What the library would refuse, or answer with garbage, is refused here: with
its status, and a sentence about it as that status's string. Matrices lie by columns, as they do for the library.
"""

import ctypes
import itertools
import sys
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

SUCCESS, NOT_INITIALIZED, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 7, 15
COMPUTE_32F = 68
DTYPES = {0: np.dtype(np.float32), 14: np.dtype(ml_dtypes.bfloat16)}
# Types of both factors, and of the product.
PRODUCTS = {(0, 0, 0), (14, 14, 14), (14, 14, 0)}
DEFAULT, BIAS, BGRADA, BGRADB = 1, 4, 256, 512
# What each attribute is, by number.
DESCRIPTION = {
    3: ("transa", ctypes.c_int32),
    4: ("transb", ctypes.c_int32),
    7: ("epilogue", ctypes.c_uint32),
    8: ("bias", ctypes.c_uint64),
}
PREFERENCE = {
    1: ("workspace", ctypes.c_uint64),
    3: ("reduction", ctypes.c_uint32),
    5: ("alignment_a", ctypes.c_uint32),
    6: ("alignment_b", ctypes.c_uint32),
    7: ("alignment_c", ctypes.c_uint32),
    8: ("alignment_d", ctypes.c_uint32),
}
# All algorithms here ask for this much memory, unless they are told to do with less.
WORKSPACE_BYTES = 2**16
RESULT_BYTES = 96
# What the first word of a chosen algorithm is.
MARK = 0x6C75636964
# How many algorithms there are for a product. Each adds up in parts of its own, so that each has its own bits.
ALGORITHMS = 3
# cublasLtReductionScheme_t: parts of a sum may be rounded to the type of the product, or not.
IN_COMPUTE_TYPE, ANY_REDUCTION = 2, 7

POINTER, INT, SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t


class RefusedError(Exception):
    """The library would end with this status."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


def expect(condition, reason, status=INVALID_VALUE):
    if not condition:
        raise RefusedError(status, reason)


@dataclass
class Handle:
    """A context on a device."""


@dataclass
class Layout:
    """A matrix by columns, `stride` elements apart."""

    type: int
    rows: int
    columns: int
    stride: int


@dataclass
class Description:
    """What is to be multiplied, and how."""

    compute_type: int
    attributes: dict = field(default_factory=lambda: {"transa": 0, "transb": 0, "epilogue": DEFAULT, "bias": 0})


@dataclass
class Preference:
    """What algorithms may ask for."""

    attributes: dict = field(
        default_factory=lambda: (
            {"workspace": 0, "reduction": ANY_REDUCTION} | {f"alignment_{matrix}": 256 for matrix in "abcd"}
        )
    )


@dataclass
class Algorithm:
    """What the heuristic has chosen, and for what: `parts` are those that the sums are made in."""

    problem: tuple
    workspace: int
    alignments: tuple
    bias_alignment: int
    parts: int


class Library:
    """The library. `calls` are the functions called.

    `refused` holds the epilogues that it has no algorithm for, with the status that says so.
    """

    def __init__(self):
        self.calls, self.refused = [], {}
        self._objects, self._reason = {}, ctypes.create_string_buffer(b"", 1000)
        self._algorithms = []
        for name, (method, types) in self._functions().items():
            setattr(self, name, ctypes.CFUNCTYPE(INT, *types)(self._checked(name, method)))
        self.cublasLtGetVersion = ctypes.CFUNCTYPE(SIZE)(lambda: 130100)
        self.cublasLtGetStatusString = ctypes.CFUNCTYPE(POINTER, INT)(lambda status: ctypes.addressof(self._reason))

    def _functions(self):
        attribute = POINTER, INT, POINTER, SIZE
        return {
            "cublasLtCreate": (self._create_handle, (POINTER,)),
            "cublasLtDestroy": (self._destroy, (POINTER,)),
            "cublasLtMatmulDescCreate": (self._create_description, (POINTER, INT, INT)),
            "cublasLtMatmulDescSetAttribute": (self._describe, attribute),
            "cublasLtMatmulDescDestroy": (self._destroy, (POINTER,)),
            "cublasLtMatrixLayoutCreate": (
                self._create_layout,
                (POINTER, INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
            ),
            "cublasLtMatrixLayoutDestroy": (self._destroy, (POINTER,)),
            "cublasLtMatmulPreferenceCreate": (self._create_preference, (POINTER,)),
            "cublasLtMatmulPreferenceSetAttribute": (self._prefer, attribute),
            "cublasLtMatmulPreferenceDestroy": (self._destroy, (POINTER,)),
            "cublasLtMatmulAlgoGetHeuristic": (self._choose, (*(POINTER,) * 7, INT, POINTER, POINTER)),
            "cublasLtMatmul": (self._multiply, (*(POINTER,) * 12, POINTER, POINTER, SIZE, POINTER)),
        }

    def _checked(self, name, method):
        """Return a function that calls a method, and returns a status where this raises."""

        def call(*arguments):
            self.calls.append(name)
            try:
                method(*arguments)
            except RefusedError as error:
                status, self._reason.value = error.status, str(error).encode()
            except Exception as error:
                status, self._reason.value = INVALID_VALUE, f"{type(error).__name__}: {error}".encode()
            else:
                status = SUCCESS
            return status

        return call

    def _make(self, target, made):
        """Put a number that stands for an object where the caller wants its address."""
        expect(target, "there is nowhere to put what is made")
        number = 0x1000 + 16 * len(self._objects)
        self._objects[number] = made
        ctypes.c_uint64.from_address(target).value = number

    def _get(self, number, kind):
        made = self._objects.get(number)
        expect(isinstance(made, kind), f"{number} is no {kind.__name__}, but {made}")
        return made

    def _destroy(self, number):
        expect(self._objects.get(number) is not None, f"{number} is not there, or not any more")
        self._objects[number] = None

    def _create_handle(self, target):
        self._make(target, Handle())

    def _create_description(self, target, compute_type, scale_type):
        # The library takes any compute type here, and refuses it when it is asked for an algorithm.
        expect(scale_type == 0, f"scales of {scale_type}")
        self._make(target, Description(compute_type))

    def _create_layout(self, target, kind, rows, columns, stride):
        expect(kind in DTYPES, f"no type {kind}")
        expect(rows > 0 and columns > 0, f"an empty matrix, {rows} x {columns}")
        expect(stride >= rows, f"columns of {rows} that are {stride} apart")
        self._make(target, Layout(kind, rows, columns, stride))

    def _create_preference(self, target):
        self._make(target, Preference())

    def _describe(self, number, attribute, buffer, size):
        self._set(self._get(number, Description), DESCRIPTION, attribute, buffer, size)

    def _prefer(self, number, attribute, buffer, size):
        self._set(self._get(number, Preference), PREFERENCE, attribute, buffer, size)

    def _set(self, made, known, attribute, buffer, size):
        expect(attribute in known, f"attribute {attribute} of a {type(made).__name__} is not known")
        name, kind = known[attribute]
        expect(size == ctypes.sizeof(kind), f"{name} has {ctypes.sizeof(kind)} bytes, not {size}")
        made.attributes[name] = kind.from_address(buffer).value

    def _problem(self, description, layouts):
        """Return what has to be multiplied, as numbers that do not change."""
        how, (a, b, c, d) = description.attributes, layouts
        expect(description.compute_type == COMPUTE_32F, f"compute type {description.compute_type}")
        expect(c == d, "the product has another layout than what is added to it")
        expect((a.type, b.type, d.type) in PRODUCTS, f"types {a.type}, {b.type} and {d.type}", NOT_SUPPORTED)
        expect(how["transa"] in (0, 1) and how["transb"] in (0, 1), f"operations of {how}")
        m, k = (a.columns, a.rows) if how["transa"] else (a.rows, a.columns)
        other_k, n = (b.columns, b.rows) if how["transb"] else (b.rows, b.columns)
        expect(
            k == other_k and (m, n) == (d.rows, d.columns),
            f"[{m}, {k}] times [{other_k}, {n}] is not [{d.rows}, {d.columns}]",
        )
        expect(how["epilogue"] in (DEFAULT, BIAS, BGRADA, BGRADB), f"epilogue {how['epilogue']}", NOT_SUPPORTED)
        expect(how["epilogue"] == DEFAULT or how["bias"], "an epilogue without an address for its vector")
        return how["transa"], how["transb"], how["epilogue"], *(tuple(vars(layout).values()) for layout in (a, b, d))

    def _choose(self, handle, description, a, b, c, d, preference, wanted, results, count):
        self._get(handle, Handle)
        description, layouts = self._get(description, Description), [self._get(each, Layout) for each in (a, b, c, d)]
        settings = self._get(preference, Preference).attributes
        expect(wanted > 0 and results and count, "nowhere to put algorithms")
        ctypes.c_int.from_address(count).value = 0
        problem = self._problem(description, layouts)
        epilogue, bias = problem[2], description.attributes["bias"]
        expect(epilogue not in self.refused, f"no algorithm has epilogue {epilogue}", self.refused.get(epilogue))
        alignments = tuple(settings[f"alignment_{matrix}"] for matrix in "abcd")
        for alignment, layout in zip(alignments, layouts, strict=True):
            least = DTYPES[layout.type].itemsize
            expect(alignment & -alignment == alignment >= least, f"an alignment of {alignment}", NOT_SUPPORTED)
        workspace = min(settings["workspace"], WORKSPACE_BYTES)
        # One that may round parts of sums to bfloat16 is put before all others, where it may be taken.
        rounding = problem[5][0] == 14 and settings["reduction"] != IN_COMPUTE_TYPE
        for number in range(min(wanted, ALGORITHMS)):
            self._algorithms.append(
                Algorithm(problem, workspace, alignments, bias & -bias, -2 if rounding else number + 1)
            )
            # The algorithm's 8 words, the size of its workspace, its state, and how many waves it takes.
            result = results + number * RESULT_BYTES
            words = (ctypes.c_uint64 * 8).from_address(result)
            words[:] = MARK, len(self._algorithms) - 1, *(0,) * 6
            ctypes.c_uint64.from_address(result + 64).value = workspace
            ctypes.c_int.from_address(result + 72).value = SUCCESS
            ctypes.c_float.from_address(result + 76).value = 1
            ctypes.c_int.from_address(count).value = number + 1

    def _multiply(
        self, handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
        algorithm, workspace, workspace_bytes, stream,
    ):  # fmt: skip
        self._get(handle, Handle)
        description = self._get(description, Description)
        layouts = [self._get(each, Layout) for each in (a_layout, b_layout, c_layout, d_layout)]
        chosen = self._chosen(algorithm)
        expect(self._problem(description, layouts) == chosen.problem, "the algorithm was chosen for another product")
        for address, alignment in zip((a, b, c, d), chosen.alignments, strict=True):
            expect(address and address % alignment == 0, f"a matrix at {address}, not on a multiple of {alignment}")
        bias = description.attributes["bias"]
        expect(not chosen.bias_alignment or bias % chosen.bias_alignment == 0, f"a vector at {bias}")
        expect(workspace_bytes >= chosen.workspace, f"{chosen.workspace} bytes are needed, {workspace_bytes} there")
        expect(not chosen.workspace or (workspace and workspace % 256 == 0), f"a workspace at {workspace}")
        # These are read now, and are the same at each replay of a captured graph; matrices are read then.
        factors = tuple(ctypes.c_float.from_address(factor).value for factor in (alpha, beta))

        def work():
            if chosen.workspace:
                ctypes.memset(workspace, 0xAA, chosen.workspace)
            multiply(chosen.problem, chosen.parts, factors, a, b, c, d, bias)

        # Without CuPy over the stand-in there are no streams.
        streams = sys.modules.get("host_work")
        if streams is None:
            work()
        else:
            streams.submit(work, stream or 0)

    def _chosen(self, address):
        expect(address, "no algorithm")
        mark, number = (ctypes.c_uint64 * 2).from_address(address)
        expect(mark == MARK and number < len(self._algorithms), "this is no algorithm of the heuristic's")
        return self._algorithms[number]


def multiply(problem, parts, factors, a, b, c, d, bias):
    """Compute a product in float32, in so many parts, and round what is written, each part too if `parts` < 0."""
    transa, transb, epilogue, a_layout, b_layout, d_layout = problem
    pairs = (a, a_layout), (b, b_layout), (c, d_layout), (d, d_layout)
    left, right, addend, out = (matrix(*pair) for pair in pairs)
    alpha, beta = map(np.float32, factors)
    left, right = left.astype(np.float32), right.astype(np.float32)
    left, right = left.T if transa else left, right.T if transb else right
    product = alpha * in_parts(left, right, parts, out.dtype)
    # Not 0 times what is there, which may be no number.
    if beta:
        product += beta * addend.astype(np.float32)
    if epilogue == BIAS:
        product += vector(bias, len(product), out.dtype).astype(np.float32)[:, None]
    elif epilogue == BGRADA:
        vector(bias, len(left), out.dtype)[...] = left.sum(axis=1)
    elif epilogue == BGRADB:
        vector(bias, right.shape[1], out.dtype)[...] = right.sum(axis=0)
    out[...] = product


def in_parts(left, right, parts, dtype):
    """Return a product whose sums are added up part by part."""
    bounds = np.linspace(0, left.shape[1], abs(parts) + 1).astype(int)
    total = np.zeros((len(left), right.shape[1]), np.float32)
    for start, stop in itertools.pairwise(bounds):
        total += left[:, start:stop] @ right[start:stop]
        total = total.astype(dtype).astype(np.float32) if parts < 0 else total
    return total


def matrix(address, layout):
    """Return a matrix that lies by columns, as an array."""
    kind, rows, columns, stride = layout
    elements = vector(address, stride * (columns - 1) + rows, DTYPES[kind])
    step = elements.itemsize
    return np.lib.stride_tricks.as_strided(elements, (rows, columns), (step, stride * step))


def vector(address, count, dtype):
    """Return memory as an array."""
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype, count)
