"""JSON that may be damaged or come from a stranger: every fault of a text is a `ValueError`."""

import functools
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Any fault of the text is a `ValueError`, too deep nesting included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_dataclass(kind: type[T], text: bytes) -> T:
    """Return the `kind` that a JSON text describes. Raises a `ValueError` that names the first wrong value."""
    hashable: Any = kind
    try:
        return _adapter(hashable).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{field} is missing or of the wrong kind" if field else first["msg"]) from error


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
