"""Whatever number a setting gets: it is refused in a sentence that names the setting, or the run starts and ends.

The settings are those that `RunConfig` has, so that a new one is tested without being listed here.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
from forks import ForkServer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lucid.models import BERTConfig
from lucid.training.config import RunConfig

VALUES = ("0", "-1", "1", "0.5", "2147483647", "9223372036854775808", "1e308", ".nan", ".inf", "text", "null", "true")
# A run of any length ends after a step or two.
SOON = ("train.max_hours=1e-9", "run_folder=new")


def numbers() -> Iterator[tuple[str, FieldInfo | None]]:
    """Yield the dotted key of each setting that is a number, with what is known about it."""
    for section, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            for name, inner in kind.model_fields.items():
                if any(number in str(inner.annotation) for number in ("int", "float")):
                    yield f"{section}.{name}", inner
    for field in fields(BERTConfig):
        if field.type in (int, float):
            yield f"model.{field.name}", None


def limits(field: FieldInfo | None) -> list[str]:
    """Return the limits of a setting that is a whole number, and the numbers next to them."""
    if field is None or "int" not in str(field.annotation):
        return []
    limits = [*field.metadata, *within(field.annotation)]
    bounds = [getattr(limit, name) for limit in limits for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)]
    return [str(bound + distance) for bound in bounds for distance in (-1, 0, 1)]


def within(annotation: object) -> Iterator[object]:
    """Yield what the parts of an annotation say about their values, at any depth."""
    for part in get_args(annotation):
        yield from getattr(part, "metadata", ())
        yield from within(part)


CASES = [(key, value) for key, field in numbers() for value in dict.fromkeys((*VALUES, *limits(field)))]


@pytest.mark.long
@pytest.mark.parametrize(("key", "value"), CASES)
def test_a_number_is_refused_by_name_or_the_run_ends(forks: ForkServer, folder: Path, key: str, value: str) -> None:
    result = forks.run(
        "train", "run.yaml", *SOON, f"{key}={value}", folder=folder, memory=4 << 30, without=["matplotlib.figure"]
    )
    assert not result.timed_out, result
    if result.code == 0:
        assert "finished at step" in result.output
        assert result.errors == ""
    else:
        assert (result.code, result.errors.count("\n")) == (2, 1), result
        section, name = key.split(".")
        assert name in result.errors or (section == "model" and "the size of the model" in result.errors), result
