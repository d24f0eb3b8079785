"""Making batches ahead in threads does not change them."""

import threading

import numpy as np
import pytest

from lucid.data import Batch, Loader


def batch_of(step: int) -> Batch:
    ids = np.full((2, 4), step, dtype=np.int32)
    labels = np.zeros(2, dtype=np.int32)
    return Batch(ids, ids > 0, ids, ids, labels, np.arange(2))


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("lucid-loader")]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_batches_come_in_order_with_any_number_of_workers(workers: int) -> None:
    with Loader(batch_of, 3, 40, workers=workers, prefetch=3) as loader:
        assert [int(batch.input_ids[0, 0]) for batch in loader] == list(range(3, 40))
        assert next(loader, None) is None


def test_a_slow_batch_is_not_overtaken() -> None:
    second_made = threading.Event()

    def make(step: int) -> Batch:
        if step == 0:
            assert second_made.wait(timeout=30)
        else:
            second_made.set()
        return batch_of(step)

    with Loader(make, 0, 4, workers=2) as loader:
        assert [int(batch.input_ids[0, 0]) for batch in loader] == [0, 1, 2, 3]


def test_the_loader_makes_no_more_batches_ahead_than_asked() -> None:
    made: list[int] = []

    def make(step: int) -> Batch:
        made.append(step)
        return batch_of(step)

    loader = Loader(make, 0, 100, workers=1, prefetch=3)
    assert not made
    next(loader)
    loader.close()
    assert len(made) <= 4


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_exception_surfaces_at_its_step_and_ends_the_iteration(workers: int) -> None:
    def make(step: int) -> Batch:
        if step >= 2:
            raise ValueError(f"step {step}")
        return batch_of(step)

    loader = Loader(make, 0, 10, workers=workers, prefetch=5)
    assert [int(next(loader).input_ids[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="step 2"):
        next(loader)
    assert next(loader, None) is None
    assert not loader_threads()


def test_closing_ends_the_threads_and_the_iteration() -> None:
    loader = Loader(batch_of, 0, 10, workers=2)
    assert not loader_threads()
    next(loader)
    assert loader_threads()
    loader.close()
    assert not loader_threads()
    assert next(loader, None) is None
