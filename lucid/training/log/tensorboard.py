"""The log of a run as TensorBoard's events.

tensorboardX makes the events and `metrics.py` writes them: the library's own writer is a thread, whose errors, such as
a full disk, would end the process.
"""

import math
import os
import struct
import time
from pathlib import Path
from typing import Any

from lucid.errors import ConfigError
from lucid.training.log.tags import tag_of


class Events:
    """Makes events. Raises `ConfigError` if tensorboardX is not installed."""

    def __init__(self) -> None:
        try:
            from tensorboardX import summary
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import masked_crc32c
        except ImportError as error:
            raise ConfigError(
                "train.tensorboard is true, but tensorboardX is not installed: pip install tensorboardX"
            ) from error
        self._scalar, self._messages, self._checksum = summary.scalar, event_pb2, masked_crc32c

    def file_in(self, folder: Path) -> Path:
        """Return the file of events for this attempt of a run in its `folder`. TensorBoard reads all such files."""
        return folder / "tensorboard" / f"events.out.tfevents.{int(time.time())}.{os.uname().nodename}.{os.getpid()}"

    def beginning(self, first_step: int) -> bytes:
        """Return the beginning of a file. TensorBoard drops events of older files from `first_step` on."""
        start = self._messages.SessionLog(status=self._messages.SessionLog.START)
        return self._record(0, file_version="brain.Event:2") + self._record(first_step, session_log=start)

    def of_entry(self, entry: dict[str, Any]) -> bytes:
        """Return the events for an entry of the log: one for each finite number. Each has a time of its own.

        TensorBoard shows them in groups, by `tag_of`.
        """
        return b"".join(
            self._record(entry["step"], summary=self._scalar(tag_of(name), value))
            for name, value in entry.items()
            if name not in ("step", "time") and math.isfinite(value)
        )

    def _record(self, step: int, **content: Any) -> bytes:
        """Return an event as it is in a file: its length and its bytes, each followed by a checksum."""
        event = self._messages.Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        return length + self._packed_checksum(length) + event + self._packed_checksum(event)

    def _packed_checksum(self, content: bytes) -> bytes:
        return struct.pack("<I", self._checksum(content))
