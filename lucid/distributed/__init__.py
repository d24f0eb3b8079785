"""Processes that train one model together: communicators, data parallelism, and the detection of failures.

Start with `parallel/naive.py`: data parallelism in thirty lines. `parallel/data_parallel.py` has the real version,
`communicators/` what carries its arrays between ranks, and `health/` what ends all ranks when one fails or hangs.
`connection.py` finds the other processes.

Importing this package initialises nothing, and loads a module only when one of its names is used. `__init__.pyi` lists
the names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
