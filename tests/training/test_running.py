"""A run from a program: `lucid.training.run`."""

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from lucid import kernels, random
from lucid.backend import CPU
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ExitCode
from lucid.kernels import products, threads
from lucid.training import run
from lucid.training.config import load
from lucid.training.numerical_environment import numerical_environment


def threads_of_libraries():
    return {library["filepath"]: library["num_threads"] for library in threadpool_info()}


def test_a_run_restores_threads_and_seed_of_the_process(run_file, losses, tmp_path):
    random.manual_seed(3)
    before, of_libraries = (threads.count(), random.state()), threads_of_libraries()
    settings = load(run_file, ["train.steps=6", f"train.threads_per_rank={threads.count() + 1}", "train.seed=5"])
    assert run(settings, SingleCommunicator(), StopRequest()) == ExitCode.FINISHED
    assert (threads.count(), random.state()) == before
    assert of_libraries.items() <= threads_of_libraries().items()  # the run may have loaded others
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4, 5, 6]


def test_a_run_stopped_on_request_says_so_and_can_be_resumed(run_file, capsys):
    settings, stop = load(run_file, ["train.steps=6"]), StopRequest()
    stop.requested = True
    assert run(settings, SingleCommunicator(), stop) == ExitCode.STOPPED
    assert "stopped at step 0 of 6" in capsys.readouterr().out
    assert run(settings, SingleCommunicator(), StopRequest()) == ExitCode.FINISHED
    assert "finished at step 6 of 6" in capsys.readouterr().out


@pytest.mark.parametrize(("library", "expected"), [("oneDNN 3.2.0 0xe7", "3"), ("NumPy's", "1")])
def test_the_recorded_threads_are_those_that_divide_products(monkeypatch, library, expected):
    monkeypatch.setattr(kernels, "product_library", lambda: library)
    monkeypatch.setattr(threads, "_limit", 3)
    with threadpool_limits(1):
        assert numerical_environment(CPU)["threads_per_rank"] == expected


def test_a_precision_chosen_within_a_block_is_restored(monkeypatch):
    chosen = []
    monkeypatch.setattr(products, "set_precision", chosen.append)
    monkeypatch.delenv("LUCID_KERNELS", raising=False)
    with kernels.choices_kept():
        kernels.set_precision("bfloat16")
    assert chosen == ["bfloat16", "float32"]
