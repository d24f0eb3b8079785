"""lucid: distributed data-parallel pretraining of BERT, with an autograd of its own, on NumPy and CuPy.

The face for programs: tensors, and the submodules, each imported when it is first used. Importing it starts nothing.
`__init__.pyi` lists the names. The command line is `lucid --help`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
