"""Reads one column of a parquet file, a few rows at a time. It needs pyarrow, an extra."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lucid.errors import DataError

# Rows held at once.
_ROWS = 64


def measure(path: Path, column: str) -> tuple[int, int]:
    """Return how many rows a parquet file has, and how many bytes its column takes unpacked.

    Raises `EOFError` if it is damaged or has no such column.
    """
    with _table(path) as table:
        names = table.schema_arrow.names
        if column not in names:
            raise EOFError(f"it has no column {column!r}")
        groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
        return table.metadata.num_rows, sum(_unpacked_size(group, column) for group in groups)


def _unpacked_size(group: Any, column: str) -> int:
    chunks = (group.column(number) for number in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)


def read_rows(path: Path, column: str, start: int, stop: int) -> Iterator[Any]:
    """Yield the values of a column in rows `start` to `stop - 1`; a `UnicodeDecodeError` for one that is not UTF-8.

    Raises `EOFError` if the file is damaged.
    """
    with _table(path) as table:
        groups: list[int] = []
        row = first = 0
        for number in range(table.num_row_groups):
            end = row + table.metadata.row_group(number).num_rows
            if row < stop and start < end:
                first = first if groups else row
                groups.append(number)
            row = end
        row = first
        for batch in table.iter_batches(_ROWS, groups, [column]):
            for value in batch.column(0)[max(start - row, 0) : max(stop - row, 0)]:
                yield _value(value)
            row += len(batch)
            if row >= stop:
                return


def _value(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install -e '.[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as table:
            yield table
    except pyarrow.ArrowException as error:
        raise EOFError(str(error)) from error
