"""Runs: their settings, the loop, checkpoints, metrics and evaluation. `run` does all of it.

It is imported when it is used: settings and checkpoints are of use without the loop, which imports all that lies below.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
