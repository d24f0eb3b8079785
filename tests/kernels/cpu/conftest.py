"""What tests of the compiled kernels share."""

import pytest


@pytest.fixture(scope="session")
def cpu():
    """The compiled kernels, regardless of the environment."""
    from lucid.kernels import cpu

    cpu.load()
    return cpu
