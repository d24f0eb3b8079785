"""The table of ranks, as `lucid train` and `lucid doctor` print it."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lucid.distributed.locations import Place, rows


def print_placement(places: Sequence[Place]) -> None:
    """Print host, cores, threads and device of all ranks."""
    table = Table("ranks", "hosts", "cores", "threads", "device")
    for row in rows(places):
        table.add_row(*row)
    Console(soft_wrap=True, highlight=False, markup=False).print(table)
