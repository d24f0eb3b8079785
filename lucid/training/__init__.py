"""Runs: their settings, the loop, checkpoints, metrics and evaluation. `run` does all of it.

`run` is imported on first use: settings and checkpoints can be used without the loop and all that it imports.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
