"""Where a benchmark keeps what it finds out about products."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from lucid.kernels.cuda import algorithms


@contextmanager
def choices_of_its_own(tiny: bool) -> Iterator[None]:
    """Inside the block, if `tiny`, keep choices of algorithms in a folder that goes with it.

    The emulated GPU's times say nothing, and are not for what the user runs on it. Choices that were made on a card
    are kept as training keeps them.
    """
    if not tiny:
        yield
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(algorithms, "cache_folder", return_value=Path(folder)),
        mock.patch.object(algorithms, "_known", {}),
        mock.patch.object(algorithms, "_used", {}),
    ):
        yield
