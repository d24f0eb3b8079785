"""`lucid log`: prints the log of a run, or sends it to a tracking service."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.tracking.sending import Sender, follow, sending
from lucid.analysis.tracking.services import ServiceName, service_named
from lucid.cli.run_settings import RunArgument
from lucid.errors import ConfigError, DataError
from lucid.training.formatting import count
from lucid.training.log.metrics import METRICS_FILE, Entry, log_of

# Key of the log, heading, format.
_COLUMNS = (
    ("step", "step", ",d"),
    ("loss", "loss", ".3f"),
    ("mlm_accuracy", "MLM", ".1%"),
    ("nsp_accuracy", "NSP", ".1%"),
    ("held_out_mlm_loss", "held-out MLM loss", ".3f"),
    ("held_out_mlm_accuracy", "MLM", ".1%"),
    ("held_out_nsp_accuracy", "NSP", ".1%"),
    ("learning_rate", "learning rate", ".2e"),
    ("gradient_norm", "norm", ".2f"),
    ("sequences_per_second", "sequences/s", ",.0f"),
    ("communication_wait", "waits", ".0%"),
)


def log(
    run: RunArgument,
    last: Annotated[int, typer.Option(min=1, help="Steps to print: the last ones in the log.")] = 10,
    to: Annotated[
        ServiceName | None, typer.Option(help="Send the log to this service instead.", show_default=False)
    ] = None,
    project: Annotated[str, typer.Option(help="The service's project; in mlflow the experiment.")] = "lucid",
    name: Annotated[
        str | None,
        typer.Option(help="Name of the run in the service. Default: the name of the folder.", show_default=False),
    ] = None,
    following: Annotated[
        bool, typer.Option("--follow", help="Send what is new again and again, until the run has finished.")
    ] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two looks at the log with --follow.")] = 30,
) -> None:
    """Print the last lines of a run's log, or send the log to wandb, mlflow or trackio.

    Run it where the service can be reached, such as on a login node: it needs the run's folder alone. Only what is new
    is sent; sent-SERVICE.json in that folder remembers the rest. The libraries' own variables say where a service is.

    Examples:

        lucid log runs/small_cpu --last 20

        lucid log runs/small_cpu --to wandb --project mine --follow
    """
    if to is None:
        if following:
            raise ConfigError("--follow is for sending: say where to (--to wandb, mlflow or trackio)")
        _print_table(run, last)
        return
    name = name or run.resolve().name
    if not log_of(run):
        raise DataError(f"{run / METRICS_FILE} has no line that can be read: has the run logged a step yet?")
    with sending(Sender(run, service_named(to), to, project, name, print), run) as sender:
        if following:
            follow(sender, lambda: time.sleep(every), print)
        else:
            lines, _ = sender.send_new()
            print(f"{count(lines, 'line')} sent to {to}" if lines else f"{to} has all lines already")


def _print_table(run: Path, last: int) -> None:
    """Print the last steps of the log; the evaluation after a step is in its row."""
    rows: dict[int, Entry] = {}
    for entry in log_of(run):
        rows[entry["step"]] = rows.get(entry["step"], {}) | entry
    shown = [rows[step] for step in sorted(rows)[-last:]]
    if not shown:
        raise DataError(f"{run / METRICS_FILE} has no line that can be read: has the run logged a step yet?")
    columns = [column for column in _COLUMNS if any(row.get(column[0]) is not None for row in shown)]
    cells = [[heading for _, heading, _ in columns]]
    cells += [[_cell(row.get(key), form) for key, _, form in columns] for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print(_joined(row, widths))


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _joined(row: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
