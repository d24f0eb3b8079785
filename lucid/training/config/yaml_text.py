"""Parses YAML that a stranger may have written: memory is bounded, and every mistake is a `ValueError`.

PyYAML's safe loader runs no code. But it recurses, expands a few lines of aliases to billions of values, and raises
various exceptions for malformed scalars.
"""

import re
from typing import Any

import yaml

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# Settings take a few kilobytes. PyYAML needs about ten seconds for a megabyte.
LARGEST = 1 << 18


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases and repeated keys. Numbers are those of YAML 1.2: 010 is ten, 1:30 is a text."""

    def compose_node(self, parent: yaml.nodes.Node | None, index: Any) -> yaml.nodes.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.nodes.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        names = set()
        for key, _ in node.value:  # scalars: only they can be keys of a dict
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value} occurs twice", key.start_mark)
            names.add(key.value)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"([-+]?[0-9]+|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)
_Loader.add_constructor(_INT, lambda loader, node: int(node.value, 16 if node.value[:2] == "0x" else 10))


def parse_yaml(text: str) -> Any:
    """Return the value of `text`. Raises `ValueError` with one line that says what is wrong."""
    if len(text) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST:,} characters")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        problem = "it is nested too deeply"
    except yaml.MarkedYAMLError as error:
        found = (error.context, error.context_mark), (error.problem, error.problem_mark)
        problem = ": ".join(f"{text}{_place(mark)}" for text, mark in found if text)
        problem = problem.replace("'<stream end>'", "the end of the text")
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
    raise ValueError(problem)


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
