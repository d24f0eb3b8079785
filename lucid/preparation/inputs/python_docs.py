"""The default corpus: the documentation that comes with every Python, so that a first run needs no download.

It consists of the topics of the language reference (`help("assert")` prints one) and the docstrings of the standard
library. Each topic and each module is a document. Sources are parsed, never imported.
"""

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lucid.errors import DataError

_SKIPPED_FOLDERS = frozenset(
    ["__pycache__", "dist-packages", "ensurepip", "idle_test", "pydoc_data", "site-packages", "test", "tests"]
)
# Characters: modules with shorter docstrings are stubs, such as a codec with a line on its origin.
_SHORTEST = 400
_DOCUMENTED = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef

# A line without words: the underline of a heading, or the border of a table.
_RULE = re.compile(r"^[ \t]*[^\w\s][^\w\n]+[^\w\s][ \t]*$\n?", re.MULTILINE)
_ROLE = re.compile(r":[a-z]+(?::[a-z]+)*:(?=`)")


def module_files() -> list[Path]:
    """Return the source files of the corpus in reading order, the topics first."""
    return [_topics_file(), *_library_files(Path(sysconfig.get_path("stdlib")))]


@cache
def python_documents() -> tuple[tuple[str, str], ...]:
    """Return (name, text) of each topic and each module that is no stub: about 460 documents, 2 MB.

    The result stays in memory, since preparing a corpus reads it several times.
    """
    topics_file, *library_files = module_files()
    library = Path(sysconfig.get_path("stdlib"))
    texts = [(f"topic {name}", text) for name, text in sorted(_topics(topics_file).items())]
    for path in library_files:
        texts.append((path.relative_to(library).as_posix(), "\n\n".join(_docstrings(path))))
    cleaned = ((name, _without_markup(text)) for name, text in texts)
    return tuple((name, text) for name, text in cleaned if len(text) >= _SHORTEST)


def _topics_file() -> Path:
    found = importlib.util.find_spec("pydoc_data.topics")
    if found is None or found.origin is None:
        raise DataError("this Python comes without its documentation (pydoc_data): give a folder of text instead")
    return Path(found.origin)


def _library_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in _SKIPPED_FOLDERS and path.name.isidentifier():
                yield from _library_files(path)
        elif path.suffix == ".py":
            yield path


def _topics(path: Path) -> dict[str, str]:
    """Return the dictionary in the module of topics."""
    for statement in _parse(path).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(statement.value)
            return topics
    raise DataError(f"{path} holds no topics: give a folder of text instead of this Python's documentation")


def _docstrings(path: Path) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions, in the order of the source."""
    waiting: list[ast.AST] = [_parse(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, _DOCUMENTED) and (docstring := ast.get_docstring(node)):
            yield docstring
        # Only bodies of statements hold definitions. This skips expressions, which are most of the tree.
        inner = (getattr(node, field, []) for field in ("body", "handlers", "orelse", "finalbody"))
        children = [child for part in inner if isinstance(part, list) for child in part]
        waiting += reversed([child for child in children if isinstance(child, ast.stmt | ast.excepthandler)])


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        # Old modules contain escapes of which newer Pythons warn.
        warnings.simplefilter("ignore")
        return ast.parse(path.read_bytes(), filename=str(path))


def _without_markup(text: str) -> str:
    """Return reStructuredText without its markup: rules, roles, double backquotes."""
    return _ROLE.sub("", _RULE.sub("", text)).replace("``", "")
