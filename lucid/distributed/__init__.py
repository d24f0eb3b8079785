"""Several processes that train as one: communicators, data parallelism, and what to do when one of them fails.

Importing this initialises nothing, and no module before one of its names is used; `connect` finds the other processes.
`__init__.pyi` lists the names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
