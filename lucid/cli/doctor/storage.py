"""Measures how fast checkpoints can be written."""

import os
import tempfile
import time
from pathlib import Path

from lucid.cli.doctor.findings import Finding, Level, ok_if
from lucid.files import nearest_existing
from lucid.models import BERTConfig
from lucid.models.bert.memory import parameter_count

_BLOCK = 16 * 2**20
_MOST_BYTES, _MOST_SECONDS = 256 * 2**20, 3.0
_SLOW = 50e6  # bytes/s
# Bytes of the weights and both moments of BERT-base. Two checkpoints are kept while a third is written.
_CHECKPOINT = 3 * 4 * parameter_count(BERTConfig())


def measure_storage(folder: Path) -> Finding:
    """Write blocks to an unnamed file, each flushed to the disk, and judge the rate."""
    existing = nearest_existing(folder.absolute())
    block = os.urandom(_BLOCK)
    try:
        free = os.statvfs(existing)
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            started, written = time.perf_counter(), 0
            while written < _MOST_BYTES and time.perf_counter() - started < _MOST_SECONDS:
                written += file.write(block)
                os.fsync(file.fileno())
            rate = written / (time.perf_counter() - started)
    except OSError as error:
        text = f"{existing} cannot be written ({error.strerror}): choose another run_folder"
        return Finding(Level.ERROR, "checkpoints", text)
    space = free.f_bavail * free.f_frsize
    text = f"{existing} takes {rate / 1e6:,.0f} MB/s to the disk, {space / 1e9:,.1f} GB free"
    if space < 3 * _CHECKPOINT:
        return Finding(Level.WARNING, "checkpoints", f"{text}: three checkpoints of BERT-base take 4 GB; make room")
    advice = f"a checkpoint of BERT-base takes {_CHECKPOINT / rate:,.0f} s; choose a faster disk for run_folder"
    return ok_if(rate >= _SLOW, "checkpoints", text, advice)
