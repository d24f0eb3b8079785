"""`python -m mpi4py -m within MODULE:CONTEXT ARGUMENTS`: `lucid ARGUMENTS` in a context that disturbs it."""

import sys
from importlib import import_module

from lucid.cli import main

if __name__ == "__main__":
    module, _, name = sys.argv[1].partition(":")
    with getattr(import_module(module), name)():
        main(sys.argv[2:])
