"""A check that all ranks read the same from the disks of their hosts."""

import hashlib
import os
from collections.abc import Iterable, Mapping

from lucid.backend import Array
from lucid.distributed import Communicator, all_or_none, broadcast_text
from lucid.errors import LucidError


def check_same(
    communicator: Communicator,
    what: str,
    texts: Iterable[str],
    weights: Iterable[Mapping[str, Array]],
    error: type[LucidError],
) -> None:
    """Raise an agreed `error` on all ranks if one has other `texts` or `weights` (on the host) than the first rank.

    `what` names them, with their paths. All ranks call this.
    """
    if communicator.size == 1:
        return
    own = _digest(texts, weights)
    first = broadcast_text(communicator, own)

    def compare() -> None:
        if own != first:
            raise error(
                f"rank {communicator.rank} on {os.uname().nodename} reads something else than the first rank from "
                f"{what}: copy the first rank's files to every host, or use a shared folder"
            )

    all_or_none(communicator, compare)


def _digest(texts: Iterable[str], weights: Iterable[Mapping[str, Array]]) -> str:
    """Return one SHA-256 over everything."""
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    for state in weights:
        for name, array in sorted(state.items()):
            found.update(f"{name} {array.dtype} {array.shape}\n".encode())
            found.update(array.tobytes())
    return found.hexdigest()
