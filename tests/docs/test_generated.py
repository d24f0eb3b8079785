"""The pages of the reference say what the code says."""

import importlib.util
import sys

import pytest
from documents import DOCS

SPECIFICATION = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
assert SPECIFICATION is not None
assert SPECIFICATION.loader is not None
generate = importlib.util.module_from_spec(SPECIFICATION)
SPECIFICATION.loader.exec_module(generate)


@pytest.mark.parametrize("name", ["settings", "commands"])
def test_a_generated_page_is_current(name: str) -> None:
    page = DOCS / "reference" / f"{name}.md"
    assert page.read_text() == getattr(generate, name)(), f"run {sys.executable} docs/generate.py, or make docs"
