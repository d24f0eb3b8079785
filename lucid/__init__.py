"""lucid: distributed data-parallel pretraining of BERT, with an autograd of its own, on NumPy and CuPy.

The face for programs: tensors, and the submodules, each imported when it is first used. Importing it starts nothing.
`__init__.pyi` lists the names. The command line is `lucid --help`.
"""

import lazy_loader

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name):  # type: ignore[no-untyped-def]  # the types are those in __init__.pyi
    if name in __all__:
        return _attribute(name)
    from lucid.errors import no_such_name

    raise no_such_name(__name__, name, __all__)
