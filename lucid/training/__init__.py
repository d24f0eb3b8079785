"""Training runs: settings, the loop, checkpoints, metrics and evaluation. `run` does all of it.

`run` is imported on first use, so that settings and checkpoints load without the loop and its imports.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
