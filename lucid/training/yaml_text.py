"""Parses YAML that a stranger may have written: whatever is wrong with it is one kind of error, and memory is bounded.

PyYAML's safe loader runs no code, but it recurses, lets a few lines of aliases stand for billions of values, and
answers some malformed scalars with whatever exception its conversion happened to raise.
"""

from typing import Any

import yaml

# Settings take a few kilobytes; PyYAML takes about ten seconds for a megabyte.
LARGEST = 1 << 18


class _Loader(yaml.SafeLoader):
    """The safe loader without aliases."""

    def compose_node(self, parent: yaml.nodes.Node | None, index: Any) -> yaml.nodes.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """Return the value of `text`. Raises `ValueError` that says on one line what is wrong."""
    if len(text) > LARGEST:
        raise ValueError(f"it is longer than {LARGEST:,} characters")
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        problem = "it is nested too deeply"
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        problem = " ".join(str(error).split())
    raise ValueError(problem)
