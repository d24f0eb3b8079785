"""Runs on GPUs by the real command line: on a GPU if there is one, and on the emulated one in any case.

On a card the model is larger and the runs are longer. The emulation has the same code launch, capture and replay the
same kernels; it shows what is computed, and not how fast.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from launching import TRAIN
from safetensors.numpy import load_file

from lucid.training.store import find_model

# Two micro-batches a step: one writes gradients, one adds to them.
SMALL = (
    "train.global_batch=4", "train.micro_batch=2", "train.steps=8", "model.num_hidden_layers=1",
    "train.evaluation_samples=4", "train.checkpoint_every=4", "train.keep_checkpoints=9",
)  # fmt: skip
LARGER = (
    "train.keep_checkpoints=9",
    "model.hidden_size=256", "model.num_attention_heads=4", "model.intermediate_size=1024", "train.global_batch=32",
    "train.micro_batch=16", "optimizer.learning_rate=1e-3",
)  # fmt: skip


class OnGPU:
    """Runs `lucid` on one GPU, a real or the emulated one."""

    def __init__(self, environment, settings, run_ranks, run_file, tmp_path, losses):
        self.environment, self.settings, self.run_ranks = environment, settings, run_ranks
        self.run_file, self.folder, self.losses = run_file, tmp_path, losses

    def train(self, ranks, name, *overrides, device="cuda", fails=False):
        """Train into a folder, and return the loss of each step; what is printed if the run is to fail."""
        arguments = f"run_folder={self.folder / name}", *self.settings, f"train.device={device}", *overrides
        finished = self.run_ranks(ranks, *TRAIN, str(self.run_file), *arguments, seconds=240, **self.environment)
        if fails:
            assert finished.returncode != 0
            return finished.stdout
        assert finished.returncode == 0, finished.stdout
        self.printed = finished.stdout
        return self.losses(self.folder / name)

    def command(self, *arguments):
        """Run another command of `lucid`, and return what it prints."""
        command = [sys.executable, "-m", "lucid", *arguments]
        environment = os.environ | self.environment
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    def weights(self, name):
        return load_file(find_model(self.folder / name) / "model.safetensors")

    def held_out(self, name):
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [line["held_out_mlm_loss"] for line in lines if "held_out_mlm_loss" in line]


@pytest.fixture
def on_gpu(gpu_environment, run_ranks, run_file, tmp_path, losses):
    """What runs `lucid` on a GPU; `gpu_environment` says on which, and is None where that is real."""
    settings = SMALL if gpu_environment is not None else LARGER
    return OnGPU(gpu_environment or {"LUCID_KERNELS": ""}, settings, run_ranks, run_file, tmp_path, losses)


def assert_close(one, other, tolerance):
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), [other[step] for step in one], rtol=tolerance)


def test_float32_gives_the_curve_of_the_cpu(on_gpu):
    assert_close(on_gpu.train(1, "cpu", device="cpu"), on_gpu.train(1, "gpu"), 1e-4)
    np.testing.assert_allclose(on_gpu.held_out("gpu"), on_gpu.held_out("cpu"), rtol=1e-4)


def test_one_micro_batch_a_step_gives_the_curve_of_the_cpu(on_gpu):
    """Its graphs write gradients that none before them has, and sum them over ranks."""
    whole = f"train.micro_batch={dict(line.split('=') for line in on_gpu.settings)['train.global_batch']}"
    assert_close(on_gpu.train(1, "cpu", whole, device="cpu"), on_gpu.train(1, "gpu", whole), 1e-4)
    if on_gpu.environment.get("PYTHONPATH"):
        on_gpu.environment["EMULATED_GPUS"] = "2"
        assert_close(on_gpu.losses(on_gpu.folder / "cpu"), on_gpu.train(2, "gpus", whole), 1e-4)
        assert "go through the host's memory" not in on_gpu.printed


def test_bfloat16_stays_within_a_percent_of_float32(on_gpu):
    assert_close(on_gpu.train(1, "float32"), on_gpu.train(1, "bfloat16", "train.precision=bfloat16"), 0.01)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_captured_steps_give_the_bits_of_steps_launched_kernel_by_kernel(on_gpu, precision):
    settings = f"train.precision={precision}", "data.packing=true"
    captured = on_gpu.train(1, "captured", *settings)
    assert captured == on_gpu.train(1, "launched", *settings, "train.cuda_graphs=false")
    one, other = on_gpu.weights("captured"), on_gpu.weights("launched")
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_share_one_gpu_give_the_curve_of_one(on_gpu, ranks):
    one = on_gpu.train(1, "one", "train.micro_batch=1")
    assert_close(one, on_gpu.train(ranks, "several", "train.micro_batch=1"), 1e-4)
    assert "gradients go through the host's memory" in on_gpu.printed


def test_lamb_and_the_sharded_optimizer_give_the_curve_of_the_cpu(on_gpu):
    settings = "optimizer.name=lamb", "optimizer.sharded=true"
    assert_close(on_gpu.train(2, "cpu", *settings, device="cpu"), on_gpu.train(2, "gpu", *settings), 1e-4)


def test_the_exact_reduction_gives_the_same_bits_on_any_number_of_ranks(on_gpu):
    settings = "train.reduction=exact", "train.micro_batch=1"
    one = on_gpu.train(1, "one", *settings)
    assert on_gpu.train(2, "two", *settings) == one


def test_a_run_goes_on_on_the_other_device(on_gpu):
    """From the GPU on the CPU, and from the CPU on the GPU, at the first checkpoint; up to rounding."""
    whole = {device: on_gpu.train(1, device, device=device) for device in ("cuda", "cpu")}
    for start, end in (("cuda", "cpu"), ("cpu", "cuda")):
        moved = on_gpu.folder / f"from {start}"
        shutil.copytree(on_gpu.folder / start, moved)
        _, *later = sorted((moved / "checkpoints").glob("0001-*"))
        for checkpoint in later:
            shutil.rmtree(checkpoint)
        assert_close(whole[start], on_gpu.train(1, moved.name, device=end), 1e-4)


def test_a_run_resumed_on_the_gpu_goes_on_bit_for_bit(on_gpu):
    whole = on_gpu.train(1, "whole", "train.precision=bfloat16")
    shutil.copytree(on_gpu.folder / "whole", on_gpu.folder / "resumed")
    shutil.rmtree(max((on_gpu.folder / "resumed" / "checkpoints").glob("0001-*")))
    assert on_gpu.train(1, "resumed", "train.precision=bfloat16") == whole
    one, other = on_gpu.weights("whole"), on_gpu.weights("resumed")
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_a_gradient_that_is_not_finite_skips_the_step_on_the_device(on_gpu):
    settings = "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "train.max_skipped_steps=3"
    printed = on_gpu.train(1, "run", *settings, fails=True)
    assert "the gradient was not finite 4 times in a row" in printed


def test_evaluate_and_predict_compute_on_the_gpu(on_gpu):
    on_gpu.train(1, "run")
    run = str(on_gpu.folder / "run")
    on_cpu, on_device = (
        on_gpu.command("evaluate", run, "--samples", "4", "--device", device) for device in ("cpu", "cuda")
    )
    assert on_cpu == on_device
    assert "[MASK] 1:" in on_gpu.command("predict", run, "a [MASK] b", "--device", "cuda")
