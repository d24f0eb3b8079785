"""Several processes that train as one: communicators, data parallelism, and what to do when one of them fails.

Importing this initialises nothing, and no module before one of its names is used; `connect` finds the other processes.
"""

from typing import TYPE_CHECKING

from lucid.lazy import imported_on_use

if TYPE_CHECKING:
    from lucid.distributed.agreement import all_or_none, is_agreed, text_of_first, texts_of_all
    from lucid.distributed.communicator import Communicator, Work
    from lucid.distributed.connection import Group, choose, connect, session
    from lucid.distributed.data_parallel import DistributedDataParallel
    from lucid.distributed.devices import device_for, wait_for_device
    from lucid.distributed.guard import Stop, StopRequest, abort_on_exception
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
    "Stop",
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

__getattr__, __dir__ = imported_on_use(
    __name__,
    {
        "Communicator": "lucid.distributed.communicator",
        "DistributedDataParallel": "lucid.distributed.data_parallel",
        "Group": "lucid.distributed.connection",
        "Place": "lucid.distributed.placement",
        "Row": "lucid.distributed.placement",
        "Stop": "lucid.distributed.guard",
        "StopRequest": "lucid.distributed.guard",
        "Work": "lucid.distributed.communicator",
        "abort_on_exception": "lucid.distributed.guard",
        "all_or_none": "lucid.distributed.agreement",
        "announced": "lucid.distributed.topology",
        "choose": "lucid.distributed.connection",
        "connect": "lucid.distributed.connection",
        "device_for": "lucid.distributed.devices",
        "find_drift": "lucid.distributed.replicas",
        "is_agreed": "lucid.distributed.agreement",
        "is_first_rank": "lucid.distributed.topology",
        "places": "lucid.distributed.placement",
        "rows": "lucid.distributed.placement",
        "session": "lucid.distributed.connection",
        "text_of_first": "lucid.distributed.agreement",
        "texts_of_all": "lucid.distributed.agreement",
        "wait_for_device": "lucid.distributed.devices",
        "watched": "lucid.distributed.watchdog",
    },
)
