"""The messages if there is no GPU, and the choice of none."""

import pytest

from lucid.backend import CPU, use_gpu
from lucid.distributed import choose, device_for
from lucid.errors import ConfigError, LaunchError, LucidError


@pytest.fixture
def no_gpu():
    try:
        use_gpu("cuda", 0)
    except ConfigError:
        return
    pytest.skip("there is a GPU")


def test_the_cpu_needs_nothing(communicator):
    assert device_for(communicator, CPU) == CPU
    assert choose(communicator, "auto").device == CPU


@pytest.mark.parametrize("backend", ["auto", "nccl", "mpi"])
def test_a_missing_gpu_is_an_error_of_one_sentence(communicator, no_gpu, backend):
    with pytest.raises(LucidError, match=r"^device 'cuda' (does not exist|needs CuPy)"):
        choose(communicator, backend, device="cuda")


@pytest.mark.mpi(min_size=2)
def test_all_ranks_learn_of_a_missing_gpu(communicator, no_gpu):
    with pytest.raises(LucidError, match=r"^device 'cuda' (does not exist|needs CuPy)") as refusal:
        choose(communicator, "auto", device="cuda")
    assert refusal.value.agreed


def test_a_device_of_another_name_is_refused(communicator):
    with pytest.raises(LucidError, match="'gpu' is not known: use 'cpu', 'cuda' or 'cuda:N'"):
        choose(communicator, "auto", device="gpu")


def test_nccl_is_not_for_the_cpu(communicator):
    with pytest.raises(LaunchError, match="nccl, which is for GPUs, but the device is cpu") as refusal:
        choose(communicator, "nccl")
    assert refusal.value.agreed
