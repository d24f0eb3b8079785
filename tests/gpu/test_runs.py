"""Runs on GPUs by the real command line: on a GPU if there is one, and on the emulated one in any case.

On a card the model is larger and the runs are longer. The emulation has the same code launch, capture and replay the
same kernels; it shows what is computed, and not how fast. Of few steps the first is launched kernel by kernel, the
second is captured, the others are replayed. A run that several tests look at is trained once.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from launching import TRAIN
from safetensors.numpy import load_file

from lucid.kernels.cache import cache_folder
from lucid.kernels.cuda import algorithms
from lucid.training.checkpoints.store import find_model

# One worker runs them all, so that none of them trains what another one has trained.
pytestmark = pytest.mark.xdist_group("runs on GPUs")

# Two micro-batches a step: one writes gradients, one adds to them.
SMALL = (
    "train.global_batch=4", "train.micro_batch=2", "train.steps=5", "optimizer.warmup_steps=2",
    "model.num_hidden_layers=1", "train.evaluation_samples=4", "train.checkpoint_every=2", "train.keep_checkpoints=9",
)  # fmt: skip
LARGER = (
    "train.keep_checkpoints=9",
    "model.hidden_size=256", "model.num_attention_heads=4", "model.intermediate_size=1024", "train.global_batch=32",
    "train.micro_batch=16", "optimizer.learning_rate=1e-3",
)  # fmt: skip
NUMBER = re.compile(r"\d+(?:\.\d+)?")
BFLOAT16, ONE_BY_ONE, PACKED = "train.precision=bfloat16", "train.cuda_graphs=false", "data.packing=true"


@dataclass(frozen=True)
class Trained:
    """A run that has ended: its folder, the loss of each step, and what it printed."""

    folder: Path
    losses: dict[int, float]
    printed: str

    def weights(self):
        return load_file(find_model(self.folder) / "model.safetensors")

    def logged(self, name):
        """Return the values of a metric, line after line."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line[name] for line in lines if name in line]

    def cut_to_its_first_checkpoint(self, folder):
        """Copy the run as it would be had it ended after its first checkpoint."""
        shutil.copytree(self.folder, folder)
        _, *later = sorted((folder / "checkpoints").glob("0001-*"))
        for checkpoint in later:
            shutil.rmtree(checkpoint)
        return folder


class OnGPU:
    """Runs `lucid` on a GPU, a real or the emulated one."""

    def __init__(self, environment, settings, run_ranks, run_file, losses, folder, trained):
        self.environment, self.settings, self.run_ranks = environment, settings, run_ranks
        self.run_file, self.losses, self.folder, self._trained = run_file, losses, folder, trained

    @property
    def is_emulated(self):
        return "PYTHONPATH" in self.environment

    @property
    def card_name(self):
        """How the names of files begin that are about this GPU."""
        if self.is_emulated:
            return "Emulated"
        import cupy

        return re.sub("[^A-Za-z0-9]+", "-", cupy.cuda.runtime.getDeviceProperties(0)["name"].decode())

    def train(self, *overrides, ranks=1, device="cuda", gpus=1):
        """Return the run with these settings, which is trained unless it has been."""
        key = self.settings, overrides, ranks, device, gpus
        if key not in self._trained:
            self._trained[key] = self.go_on(self.folder / str(len(self._trained)), *overrides, ranks=ranks,
                                            device=device, gpus=gpus)  # fmt: skip
        return self._trained[key]

    def go_on(self, folder, *overrides, ranks=1, device="cuda", gpus=1):
        """Train in a folder, from the newest checkpoint in it."""
        finished = self._run(folder, *overrides, ranks=ranks, device=device, gpus=gpus)
        assert finished.returncode == 0, finished.stdout
        return Trained(folder, self.losses(folder), finished.stdout)

    def fail(self, *overrides):
        """Train in vain, and return what is printed."""
        finished = self._run(self.folder / "failed", *overrides, ranks=1, device="cuda", gpus=1)
        assert finished.returncode != 0
        return finished.stdout

    def _run(self, folder, *overrides, ranks, device, gpus):
        arguments = f"run_folder={folder}", *self.settings, f"train.device={device}", *overrides
        environment = self.environment | {"EMULATED_GPUS": str(gpus)}
        return self.run_ranks(ranks, *TRAIN, str(self.run_file), *arguments, seconds=240, **environment)

    def command(self, *arguments):
        """Run another command of `lucid`, and return what it prints."""
        command = [sys.executable, "-m", "lucid", *arguments]
        environment = os.environ | self.environment
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@pytest.fixture(scope="module")
def trained():
    """The runs that are there, by what they were asked for."""
    return {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where they are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def on_gpu(gpu_environment, run_ranks, run_file, losses, folder, trained):
    """What runs `lucid` on a GPU; `gpu_environment` says on which, and is None where that is real."""
    settings = SMALL if gpu_environment is not None else LARGER
    return OnGPU(gpu_environment or {"LUCID_KERNELS": ""}, settings, run_ranks, run_file, losses, folder, trained)


def assert_same_curve(one, other, tolerance=1e-4):
    assert one.losses.keys() == other.losses.keys()
    found, expected = (list(run.losses.values()) for run in (one, other))
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def assert_same_bits(one, other):
    assert one.losses == other.losses
    weights = other.weights()
    for name, array in one.weights().items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


def test_float32_gives_the_curve_of_the_cpu(on_gpu):
    gpu, cpu = on_gpu.train(), on_gpu.train(device="cpu")
    assert_same_curve(gpu, cpu)
    np.testing.assert_allclose(gpu.logged("held_out_mlm_loss"), cpu.logged("held_out_mlm_loss"), rtol=1e-4)


@pytest.mark.parametrize("size", ["null", "auto"])
def test_one_micro_batch_a_step_gives_the_curve_of_the_cpu(on_gpu, size):
    """Its graphs write gradients that none before them has, and the sums over ranks follow at once."""
    assert_same_curve(on_gpu.train(f"train.micro_batch={size}"), on_gpu.train(device="cpu"))


@pytest.mark.parametrize("gpu_environment", ["emulated"], indirect=True)
def test_ranks_with_a_gpu_each_give_the_curve_of_the_cpu_by_nccl(on_gpu):
    several = on_gpu.train("train.micro_batch=null", ranks=2, gpus=2)
    assert_same_curve(several, on_gpu.train(device="cpu"))
    assert "go through the host's memory" not in several.printed
    assert all(0 < wait < 1 for wait in several.logged("communication_wait"))


@pytest.mark.long
@pytest.mark.parametrize("balance", ["train.balance=length", "train.balance=speed"])
@pytest.mark.parametrize("gpu_environment", ["emulated"], indirect=True)
def test_ranks_with_unlike_numbers_of_micro_batches_give_the_curve_of_the_cpu(on_gpu, balance):
    settings = "train.global_batch=5", "train.steps=12"
    several = on_gpu.train(*settings, balance, "train.micro_batch=2", "train.log_every=1", ranks=2, gpus=2)
    assert_same_curve(several, on_gpu.train(*settings, device="cpu"))


def test_bfloat16_stays_within_a_percent_of_float32(on_gpu):
    assert_same_curve(on_gpu.train(BFLOAT16), on_gpu.train(), 0.01)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((), id="float32"),
        pytest.param((BFLOAT16, PACKED), id="bfloat16, packed"),
        pytest.param((PACKED,), id="float32, packed", marks=pytest.mark.long),
        pytest.param((BFLOAT16,), id="bfloat16", marks=pytest.mark.long),
    ],
)
def test_captured_steps_give_the_bits_of_steps_launched_kernel_by_kernel(on_gpu, settings):
    assert_same_bits(on_gpu.train(*settings), on_gpu.train(*settings, ONE_BY_ONE))


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_that_share_one_gpu_give_the_curve_of_one(on_gpu, ranks):
    several = on_gpu.train("train.micro_batch=1", ranks=ranks)
    assert_same_curve(several, on_gpu.train())
    assert "gradients go through the host's memory" in several.printed


def test_lamb_and_the_sharded_optimizer_give_the_curve_of_the_cpu(on_gpu):
    settings = "optimizer.name=lamb", "optimizer.sharded=true"
    gpu, cpu = on_gpu.train(*settings, ranks=2), on_gpu.train(*settings, ranks=2, device="cpu")
    assert_same_curve(gpu, cpu)
    for name in ("gradient_norm/encoder.layer.0", "update_ratio/heads"):
        np.testing.assert_allclose(gpu.logged(name), cpu.logged(name), rtol=1e-3)


def test_the_exact_reduction_gives_the_same_bits_on_any_number_of_ranks(on_gpu):
    settings = "train.reduction=exact", "train.micro_batch=1"
    assert_same_bits(on_gpu.train(*settings), on_gpu.train(*settings, ranks=2))


@pytest.mark.parametrize(("start", "end"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_on_the_other_device_up_to_rounding(on_gpu, tmp_path, start, end):
    whole = on_gpu.train(device=start)
    moved = whole.cut_to_its_first_checkpoint(tmp_path / "moved")
    assert_same_curve(on_gpu.go_on(moved, device=end), whole)


def test_a_run_resumed_on_the_gpu_goes_on_bit_for_bit(on_gpu, tmp_path):
    whole = on_gpu.train(BFLOAT16)
    assert_same_bits(on_gpu.go_on(whole.cut_to_its_first_checkpoint(tmp_path / "resumed"), BFLOAT16), whole)


def test_a_run_resumed_where_other_algorithms_are_the_fastest_goes_on_bit_for_bit(on_gpu, tmp_path, monkeypatch):
    """It brings those that it was made with. A run that begins there has other bits."""
    whole = on_gpu.train(BFLOAT16)
    cache = cache_folder("products", Path(algorithms.__file__).parent).parent
    files = cache.glob(f"products/{on_gpu.card_name}*.jsonl")
    kept = max(files, key=lambda path: path.stat().st_mtime)
    choices = [json.loads(line) for line in kept.read_text().splitlines() if line]
    elsewhere = tmp_path / "cache"
    (elsewhere / "products").mkdir(parents=True)
    others = [choice | {"algorithm": (choice["algorithm"] + 1) % 2} for choice in choices]
    (elsewhere / "products" / kept.name).write_text("".join(f"{json.dumps(choice)}\n" for choice in others))
    for kernels in cache.glob("kernels-*"):
        (elsewhere / kernels.name).symlink_to(kernels)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(elsewhere))
    resumed = on_gpu.go_on(whole.cut_to_its_first_checkpoint(tmp_path / "resumed"), BFLOAT16)
    assert_same_bits(resumed, whole)
    if on_gpu.is_emulated:
        begun = on_gpu.go_on(tmp_path / "begun", BFLOAT16).weights()
        assert any((array != begun[name]).any() for name, array in whole.weights().items())


def test_a_gradient_that_is_not_finite_skips_the_step_on_the_device(on_gpu):
    printed = on_gpu.fail("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "train.max_skipped_steps=2")
    assert "the gradient was not finite 3 times in a row" in printed


def test_evaluate_and_predict_compute_on_the_gpu(on_gpu):
    run = str(on_gpu.train().folder)
    on_cpu, on_device = (
        on_gpu.command("evaluate", run, "--samples", "4", "--device", device) for device in ("cpu", "cuda")
    )
    assert NUMBER.sub("", on_cpu) == NUMBER.sub("", on_device)
    numbers = ([float(number) for number in NUMBER.findall(printed)] for printed in (on_cpu, on_device))
    np.testing.assert_allclose(*numbers, rtol=1e-3)
    assert "[MASK] 1:" in on_gpu.command("predict", run, "a [MASK] b", "--device", "cuda")


@pytest.mark.long
def test_vectors_of_texts_are_those_of_the_cpu(on_gpu, tmp_path):
    (tmp_path / "texts.txt").write_text("ba co.\n\ndu fe gi ka lo\n")
    vectors = []
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.npy"
        arguments = str(tmp_path / "texts.txt"), "-o", str(output), "--device", device
        on_gpu.command("embed", str(on_gpu.train().folder), *arguments)
        vectors.append(np.load(output))
    np.testing.assert_allclose(*vectors, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_a_measured_plan_predicts_steps_on_gpus(on_gpu):
    arguments = str(on_gpu.run_file), "--measure", "--json", "--nodes", "2", "--link", "10Gbit", "train.global_batch=8"
    printed = on_gpu.command("plan", *arguments, *on_gpu.settings, "train.device=cuda")
    found = json.loads(printed[printed.index("{") :])
    assert [step["ranks"] for step in found["steps"]] == [1, 2]
    assert found["measured"]["seconds_per_flop"] > 0
    assert found["measured"]["update_seconds"] > 0
