"""Micro-batches on a GPU as CUDA graphs: to launch a thousand kernels one by one takes longer than to run small ones.

A graph is of one shape. So rows, labels and sequences are filled up to a few sizes; what is made up has no label, and
changes nothing. The first micro-batch of a shape runs kernel by kernel, the second is captured, all others are
replayed: their rows, weights and coordinates are copied to where the first ones lay. Communication stays outside the
graphs, which end where a bucket of gradients is complete: MPI could not be captured, and NCCL wants all ranks to
capture alike, but ranks have different shapes. In a shape's first pass, in which the host waits for the GPU,
communication comes after all of backward.

A replay launches what was captured and communicates as the captured pass did; no other Python runs. So what backward
does in Python besides has to be the same each time, or be done by hand:

- Each parameter is marked as having a gradient. The first contribution to an unmarked one overwrites, others add, and
  a graph keeps which of the two it did. That is the same each time, as no parameter is marked before a step's first
  micro-batch, and all are after each. A replay marks none itself.
- `BucketedReduction` counts parameters and buckets. It is through with both at the end of each pass.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from lucid import kernels
from lucid.backend import Array, array_module
from lucid.distributed import Communicator, DistributedDataParallel, wait_for_device
from lucid.gpu_async import MemoryPool, Recording, StaticArrays
from lucid.models import BERTForPreTraining
from lucid.models.bert.token_rows import LabelledRows
from lucid.training.micro_batches import MicroBatches, Place, no_figures
from lucid.training.product_choices import times_products

# Sizes that a number of rows is rounded up to, between none and all of the grid.
_SIZES = 32
# Rows come in multiples of this, labelled ones of a fraction: products like them.
_ROWS_AT_ONCE = 64

# The memory that is taken at once is the estimate and this part of it more: it is off by less.
_MORE = 16

Shape = tuple[int, int, int]


def rounded_up(shape: Shape, batch: int, length: int) -> Shape:
    """Return the shape (rows, labelled rows, sequences) that a micro-batch of `batch` x `length` slots is filled up to.

    There are at least as many more sequences as the rows that are made up need.
    """
    rows, labelled, sequences = shape
    step = _multiple(-(-batch * length // _SIZES), _ROWS_AT_ONCE)
    labels_at_once = max(1, step // 4)
    more = -(-step // length)
    return _multiple(rows, step), _multiple(labelled, labels_at_once), _multiple(sequences, max(1, batch // 4)) + more


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


@dataclass
class _Program:
    """What runs the micro-batches of one shape: the arrays they are copied to, and the recording once there is one."""

    inputs: StaticArrays
    rows: LabelledRows
    place: Place
    figures: Array
    has_run: bool = False
    recording: Recording | None = None


class GraphedMicroBatches(MicroBatches):
    """Runs micro-batches on the GPU that holds the model, one of the ranks of `communicator`.

    `graphs=False` launches every kernel each time. `activation_bytes` is about what a micro-batch takes at most.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel[BERTForPreTraining],
        seed: int,
        communicator: Communicator,
        graphs: bool,
        activation_bytes: int,
    ) -> None:
        """Raises `TrainingError` if the GPU has no room for so much."""
        super().__init__(ddp, seed)
        self._communicator, self._graphs = communicator, graphs
        self._device = ddp.module.device
        self._timed = times_products(ddp)
        self._pool = MemoryPool(self._device, activation_bytes + activation_bytes // _MORE)
        self._programs: dict[tuple[Shape, int, tuple[bool, bool]], _Program] = {}

    def run(self, rows: LabelledRows, place: Place, ends: tuple[bool, bool]) -> Array:
        rows = rows.filled_up(rounded_up(rows.shape, rows.grid_rows, rows.sequences.length))
        key = rows.shape, rows.grid_rows, ends
        values = rows.arrays() | place.numbers()
        if key not in self._programs:
            inputs = StaticArrays(values, self._device)
            rows_there, place_there = rows.with_arrays(inputs.arrays), Place.of(self.seed, inputs.arrays)
            self._programs[key] = _Program(inputs, rows_there, place_there, no_figures(self.ddp.flat.gradients))
        program = self._programs[key]
        # A rank that is missing in a collective may show here first, where a step has several micro-batches.
        wait_for_device(self._communicator, program.inputs)
        program.inputs.fill(values)
        is_first, _ = ends
        return self._run(program, is_first)

    def _run(self, program: _Program, is_first: bool) -> Array:
        flat, records = self.ddp.flat, self._graphs and program.has_run
        assert not records or flat.has_gradients == (not is_first), "a graph would overwrite where it has to add"
        if program.recording is not None:
            program.recording.replay()
            flat.mark_gradients()
        elif records:
            with self._pool.allocating(), Recording() as recording, self.ddp.communicating(recording.run_on_host):
                self._backward(program.rows, program.place, program.figures)
            program.recording = recording
        elif program.has_run:
            with self._pool.allocating():
                self._backward(program.rows, program.place, program.figures)
        else:
            self._run_first(program)
        return program.figures

    def _run_first(self, program: _Program) -> None:
        """Run the first micro-batch of a shape: kernel by kernel, and all of it before anything is communicated.

        Kernels are loaded and products timed meanwhile, which waits for the GPU unseen by the watchdog. So nothing
        there may wait for other ranks, and nothing else may keep it busy.
        """
        wait_for_device(self._communicator, array_module(program.figures).cuda.get_current_stream())
        later: list[Callable[[], None]] = []
        with self._pool.allocating(), self.ddp.communicating(later.append):
            self._backward(program.rows, program.place, program.figures)
        for action in later:
            action()
        program.has_run = True

    def _backward(self, rows: LabelledRows, place: Place, figures: Array) -> None:
        with kernels.timed_products() if self._timed else nullcontext():
            super()._backward(rows, place, figures)
