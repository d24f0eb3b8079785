"""Parquet and Arrow files, read by pyarrow: a row is a document. Arrow files are those of streams and of random access.

Parquet is read by pages, a few rows at a time. Arrow is mapped into memory; but a record batch that is compressed is
unpacked whole, again for each piece that has rows of it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lucid.errors import DataError
from lucid.files import check_is_file
from lucid.preparation.inputs.kinds import PARQUET
from lucid.preparation.inputs.omissions import LONGEST_LINE, NOT_UTF8, TOO_LONG, Drop, no_column
from lucid.preparation.inputs.pieces import Cut, Piece
from lucid.preparation.inputs.sources import Source

# Rows of a table that are held at once, and bytes of a column that are read at once.
_ROWS_AT_ONCE, _COLUMN_BYTES_AT_ONCE = 8, 1 << 20


def cut_table(source: Source, piece_bytes: int) -> tuple[int, tuple[Cut, ...]]:
    """Return the bytes of the column of a table, and the rows at which its pieces start and end.

    Raises `EOFError` if the file is damaged, and `UnusableFileError` if it has no such column.
    """
    rows, size = _parquet_size(source) if source.kind == PARQUET else _arrow_size(source)
    rows_at_once = max(1, rows * piece_bytes // max(size, 1))
    starts = (*range(0, rows, rows_at_once), rows) if rows else (0,)
    return size, tuple((start, start + 1) for start in starts)


def table_rows(piece: Piece, drop: Drop) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each row of a piece; the value can be anything. Raises as `cut_table` does."""
    piece.source.check_unchanged()
    batches = _parquet_batches if piece.source.kind == PARQUET else _arrow_batches
    for first, column in batches(piece.source, piece.start, piece.stop):
        start, stop = max(piece.start - first, 0), piece.stop - first
        for number, value in enumerate(column[start : max(stop, 0)], start=first + start + 1):
            size, held = _held(value)
            if size > LONGEST_LINE:
                drop(piece.source, number, TOO_LONG, "")
                continue
            try:
                yield number, held if piece.source.holds_ids else value.as_py()
            except UnicodeDecodeError as error:
                drop(piece.source, number, NOT_UTF8, error.reason)


def _held(value: Any) -> tuple[int, Any]:
    """Return the bytes of the text or the list that a value of pyarrow is, and the array of the list, if it is one."""
    if hasattr(value, "as_buffer"):
        buffer = value.as_buffer()
        return (0 if buffer is None else buffer.size), None
    values = getattr(value, "values", None)
    return (0, None) if values is None else (values.nbytes, values)


def _parquet_size(source: Source) -> tuple[int, int]:
    with _parquet(source) as table:
        _check_column(source, table.schema_arrow.names)
        groups = [table.metadata.row_group(number) for number in range(table.num_row_groups)]
        chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
        ours = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == source.field]
        return table.metadata.num_rows, sum(chunk.total_uncompressed_size for chunk in ours)


def _parquet_batches(source: Source, start: int, stop: int) -> Iterator[tuple[int, Any]]:
    """Yield the first row and the column of each batch that may hold rows `start` to `stop - 1`."""
    with _parquet(source) as table:
        groups: list[int] = []
        row = first = 0
        for number in range(table.num_row_groups):
            end = row + table.metadata.row_group(number).num_rows
            if row < stop and start < end:
                first = first if groups else row
                groups.append(number)
            row = end
        row = first
        for batch in table.iter_batches(_ROWS_AT_ONCE, groups, [source.field]):
            yield row, batch.column(0)
            row += len(batch)
            if row >= stop:
                return


def _arrow_size(source: Source) -> tuple[int, int]:
    rows = size = 0
    for row, column in _arrow_batches(source, 0, None):
        rows, size = row + len(column), size + column.nbytes
    return rows, size


def _arrow_batches(source: Source, start: int, stop: int | None) -> Iterator[tuple[int, Any]]:
    """Yield the first row and the column of each batch that holds rows `start` to `stop - 1`, or any row."""
    row = 0
    with _errors_of_pyarrow(source):
        for batch in _arrow(source):
            end = row + batch.num_rows
            if start < end:
                yield row, _checked(batch.column(0))
            row = end
            if stop is not None and row >= stop:
                return


def _checked(column: Any) -> Any:
    """Return a column after checking that its values lie within the file: a damaged one could lead anywhere."""
    import pyarrow

    # As bytes: text that is not UTF-8 concerns its own row alone.
    as_bytes = {pyarrow.string(): pyarrow.binary(), pyarrow.large_string(): pyarrow.large_binary()}
    (column.view(as_bytes[column.type]) if column.type in as_bytes else column).validate(full=True)
    return column


@contextmanager
def _parquet(source: Source) -> Iterator[Any]:
    with _errors_of_pyarrow(source):
        from pyarrow import parquet

        with parquet.ParquetFile(source.path, buffer_size=_COLUMN_BYTES_AT_ONCE) as table:
            yield table


def _arrow(source: Source) -> Iterator[Any]:
    """Yield the batches of an Arrow file, with the column of the source alone."""
    import pyarrow
    from pyarrow import ipc

    assert source.path is not None
    check_is_file(Path(source.path))
    with pyarrow.memory_map(source.path) as file:
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        names = (ipc.open_stream(file) if is_stream else ipc.open_file(file)).schema.names
        _check_column(source, names)
        file.seek(0)
        options = ipc.IpcReadOptions(included_fields=[names.index(source.field)])
        if is_stream:
            yield from ipc.open_stream(file, options=options)
        else:
            table = ipc.open_file(file, options=options)
            yield from map(table.get_batch, range(table.num_record_batches))


@contextmanager
def _errors_of_pyarrow(source: Source) -> Iterator[None]:
    """Turn the errors of pyarrow in the block into `EOFError`s, and its absence into a `DataError`."""
    try:
        import pyarrow
    except ImportError as error:
        what = source.kind.removeprefix(".")
        raise DataError(f"{source.shown}: reading {what} needs pyarrow: pip install 'lucid-bert[parquet]'") from error
    try:
        yield
    except pyarrow.ArrowException as error:
        raise EOFError(str(error)) from error


def _check_column(source: Source, names: Sequence[str]) -> None:
    if source.field not in names:
        raise no_column(source, names)
