"""Several processes that train as one: communicators, data parallelism, and what to do when one of them fails.

Importing this initialises nothing; `connect` does.
"""

from lucid.distributed.agreement import all_or_none, is_agreed, text_of_first, texts_of_all
from lucid.distributed.communicator import Communicator, Work
from lucid.distributed.connection import Group, choose, connect, session
from lucid.distributed.data_parallel import DistributedDataParallel
from lucid.distributed.devices import device_for, wait_for_device
from lucid.distributed.guard import StopRequest, abort_on_exception
from lucid.distributed.placement import Place, Row, places, rows
from lucid.distributed.replicas import find_drift
from lucid.distributed.topology import announced, is_first_rank
from lucid.distributed.watchdog import watched

__all__ = [
    "Communicator",
    "DistributedDataParallel",
    "Group",
    "Place",
    "Row",
    "StopRequest",
    "Work",
    "abort_on_exception",
    "all_or_none",
    "announced",
    "choose",
    "connect",
    "device_for",
    "find_drift",
    "is_agreed",
    "is_first_rank",
    "places",
    "rows",
    "session",
    "text_of_first",
    "texts_of_all",
    "wait_for_device",
    "watched",
]
