"""Faults have nothing to do with kernels: the reference needs no loading, and ranks start dozens of times here."""

import pytest


@pytest.fixture(autouse=True)
def reference_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUCID_KERNELS", "reference")
