"""How Sphinx builds the documentation: `make docs` writes the site to docs/_build/html.

The pages are plain Markdown, which reads as well in the repository. The pages named index.md list others; from these
lists follow the order of the site and its table of contents, so that there is one list of each.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from lucid.version import __version__

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "lucid"
copyright = "the lucid authors"
release = version = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
highlight_language = "none"
html_theme = "furo"
html_title = f"lucid {__version__}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# In a docstring `name` leads to what has this name, if that is documented.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Links to `page.md#heading` work as they do in the repository.
myst_heading_anchors = 4

_HEADING = re.compile(r"## (.+)")
_LISTED = re.compile(r"(?:- |\| )\[([^\]]+)\]\(([\w./-]+)\.(?:md|rst)\)")


def contents(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what an index page lists: its headings, each with the title and the path of pages.

    A page is listed by a link at the beginning of an item of a list, or of a row of a table.
    """
    sections: list[tuple[str, list[tuple[str, str]]]] = [("", [])]
    for line in text.splitlines():
        if heading := _HEADING.match(line):
            sections.append((heading[1], []))
        elif listed := _LISTED.match(line):
            sections[-1][1].append((listed[1], listed[2]))
    return [(heading, pages) for heading, pages in sections if pages]


def _add_contents(app: "Sphinx", page: str, source: list[str]) -> None:
    if Path(page).name == "index":
        for heading, pages in contents(source[0]):
            options = [":hidden:", *([f":caption: {heading}"] if heading else [])]
            entries = [f"{title} <{path}>" for title, path in pages]
            source[0] += "\n".join(["\n```{toctree}", *options, "", *entries, "```\n"])


def setup(app: "Sphinx") -> None:
    """Let Sphinx take the order of pages from `contents`."""
    app.connect("source-read", _add_contents)
