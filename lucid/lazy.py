"""Names of a package that are imported when they are first used (PEP 562), so that importing the package is quick."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def imported_on_use(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of `package`, which has `names` beside what it defines.

    Each is imported from the module that `names` gives for it when it is first used; where that is called
    `package.name` it is the module itself. For type checkers the package imports them under `TYPE_CHECKING` as well.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(names[name])
        found = module if names[name] == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, found)  # the next use does not come here
        return found

    return get, lambda: sorted({*vars(sys.modules[package]), *names})
