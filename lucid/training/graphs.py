"""Micro-batches on a GPU as CUDA graphs: launching a thousand kernels one by one takes longer than running small ones.

A graph has fixed shapes. So rows, labels and sequences are padded to a few sizes; made-up rows have no labels and
change no result. The first micro-batch of a shape runs kernel by kernel, the second is captured, and all later ones
are replayed: their rows, weights and coordinates are copied into the arrays of the captured one. Communication stays
outside the graphs, which end wherever a bucket of gradients is complete. MPI cannot be captured, and NCCL wants all
ranks to capture the same, but ranks have different shapes. In the first pass of a shape, during which the host waits
for the GPU, all communication follows backward.

A replay launches the captured graphs and communicates as the captured pass did; no other Python runs. So every side
effect of backward in Python must either be the same each time, or be done by hand after a replay:

- Backward marks each parameter as having a gradient. The first contribution to an unmarked one overwrites, later ones
  add, and a graph repeats what it captured. That is the same each time: no parameter is marked before the first
  micro-batch of a step, and all are after each. A replay marks none itself.
- `BucketedReduction` counts parameters and buckets. Both counts are complete at the end of each pass.
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
from lucid.training.micro_batches import MicroBatches, StepInputs, zero_sums
from lucid.training.product_choices import times_products

# Numbers of rows are rounded up to one of this many sizes, up to all slots of the grid.
_SIZES = 32
# Numbers of rows are multiples of this, because matrix products run faster then.
_ROW_MULTIPLE = 64

# The memory pool takes the estimate and 1/16 of it more, which is more than the error of the estimate.
_POOL_MARGIN = 16

Shape = tuple[int, int, int]


def rounded_up(shape: Shape, batch: int, length: int) -> Shape:
    """Return the shape (rows, labelled rows, sequences) to which a micro-batch of `batch` x `length` slots is padded.

    It has at least as many more sequences as the made-up rows need.
    """
    rows, labelled, sequences = shape
    step = _multiple(-(-batch * length // _SIZES), _ROW_MULTIPLE)
    most_made_up = -(-step // length)
    return (
        _multiple(rows, step),
        _multiple(labelled, max(1, step // 4)),
        _multiple(sequences, max(1, batch // 4)) + most_made_up,
    )


def _multiple(count: int, of: int) -> int:
    return -(-count // of) * of


@dataclass
class _Program:
    """Everything that runs the micro-batches of one shape: fixed arrays for their inputs, and the recording, if any."""

    static: StaticArrays
    rows: LabelledRows
    inputs: StepInputs
    sums: Array
    has_run: bool = False
    recording: Recording | None = None


class GraphedMicroBatches(MicroBatches):
    """Runs micro-batches on the GPU of the model, on one of the ranks of `communicator`.

    `graphs=False` launches every kernel each time. `activation_bytes` estimates the most that a micro-batch takes.
    """

    def __init__(
        self,
        ddp: DistributedDataParallel[BERTForPreTraining],
        seed: int,
        communicator: Communicator,
        graphs: bool,
        activation_bytes: int,
    ) -> None:
        """Raises `TrainingError` if the GPU has too little memory."""
        super().__init__(ddp, seed)
        self._communicator, self._graphs = communicator, graphs
        self._device = ddp.module.device
        self._timed = times_products(ddp)
        self._pool = MemoryPool(self._device, activation_bytes + activation_bytes // _POOL_MARGIN)
        self._programs: dict[tuple[Shape, int, tuple[bool, bool]], _Program] = {}

    def run(self, rows: LabelledRows, inputs: StepInputs, ends: tuple[bool, bool]) -> Array:
        rows = rows.filled_up(rounded_up(rows.shape, rows.grid_rows, rows.sequences.length))
        key = rows.shape, rows.grid_rows, ends
        values = rows.arrays() | inputs.arrays()
        if key not in self._programs:
            static = StaticArrays(values, self._device)
            inputs_there = StepInputs.from_arrays(self.seed, static.arrays)
            sums = zero_sums(self.ddp.flat.gradients)
            self._programs[key] = _Program(static, rows.with_arrays(static.arrays), inputs_there, sums)
        program = self._programs[key]
        # With several micro-batches in a step, a rank that is missing in a collective may first be noticed here.
        wait_for_device(self._communicator, program.static)
        program.static.fill(values)
        is_first, _ = ends
        return self._run(program, is_first)

    def _run(self, program: _Program, is_first: bool) -> Array:
        flat, records = self.ddp.flat, self._graphs and program.has_run
        assert not records or flat.has_gradients == (not is_first), "a graph would overwrite where it has to add"
        if program.recording is not None:
            program.recording.replay()
            flat.mark_gradients()
        elif records:
            with self._pool.allocating(), Recording() as recording, self.ddp.collectives_run_by(recording.run_on_host):
                self._backward(program.rows, program.inputs, program.sums)
            program.recording = recording
        elif program.has_run:
            with self._pool.allocating():
                self._backward(program.rows, program.inputs, program.sums)
        else:
            self._run_first(program)
        return program.sums

    def _run_first(self, program: _Program) -> None:
        """Run the first micro-batch of a shape kernel by kernel, and then communicate.

        Loading kernels and timing products waits for the GPU without the watchdog's notice. So nothing in the meantime
        may wait for other ranks or keep the GPU busy.
        """
        wait_for_device(self._communicator, array_module(program.sums).cuda.get_current_stream())
        later: list[Callable[[], None]] = []
        with self._pool.allocating(), self.ddp.collectives_run_by(later.append):
            self._backward(program.rows, program.inputs, program.sums)
        for action in later:
            action()
        program.has_run = True

    def _backward(self, rows: LabelledRows, inputs: StepInputs, sums: Array) -> None:
        with kernels.timed_products() if self._timed else nullcontext():
            super()._backward(rows, inputs, sums)
