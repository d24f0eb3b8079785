"""`lucid plan`: what a run will need and do, before it is started; with --measure, how long it takes on more nodes."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.plan.line import Line
from lucid.cli.plan.outline import outline
from lucid.cli.run_settings import ConfigFile, Overrides
from lucid.distributed import announced, is_first_rank, run_on_first_rank, session
from lucid.errors import ConfigError
from lucid.training.config import RunConfig, from_dict, load
from lucid.training.corpora import Corpora, open_corpora


def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Number of ranks. Default: as many as were launched.", show_default=False),
    ] = None,
    most_ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Print only the largest number of ranks, N or fewer, that the settings allow; for job scripts.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Take some real steps here, and predict those on more nodes.")
    ] = False,
    best: Annotated[
        bool,
        typer.Option(
            "--best",
            help="Measure how to divide this machine's cores into ranks and threads, and print the best ways to start.",
        ),
    ] = False,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With --measure: the most nodes, by default those launched; with --best: the number, by default 1.",
            show_default=False,
        ),
    ] = None,
    ranks_per_node: Annotated[
        int | None,
        typer.Option(min=1, help="With --measure: ranks on each node. Default: as launched.", show_default=False),
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            metavar="RATE[,LATENCY]",
            help="With --measure or --best: what joins the nodes, such as 10Gbit or 100Gbit,2us. Default: measured "
            "between the nodes that were launched.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --measure: print what was measured and predicted as JSON instead.")
    ] = False,
) -> None:
    """Print what a run will need and do: epochs, micro-batches, memory, checkpoints, FLOPs and time.

    Nothing is trained or written. The corpus, or the model to start from, may still be missing. Exit code 2: settings,
    corpus, start and number of ranks do not fit together.

    With --measure, all launched ranks take some real steps, in less than a minute; the weights are thrown away. A table
    says what a step and the whole run take on 1, 2, 4, ... nodes like these. With --best, other settings that learn the
    same are searched too: micro-batch, sharded optimizer, recomputation, buckets.

    Examples:

        lucid plan my.yaml --ranks 2

        lucid plan my.yaml --ranks 8 train.micro_batch=8

        lucid plan my.yaml --most-ranks 12

        mpiexec -n 2 lucid plan my.yaml --measure --nodes 16 --link 10Gbit

        lucid plan my.yaml --best --nodes 4 --link 10Gbit
    """
    _check_options(
        measure,
        best,
        neither={"--ranks": ranks, "--most-ranks": most_ranks},
        measured={"--ranks-per-node": ranks_per_node, "--json": as_json},
        either={"--nodes": nodes, "--link": link},
    )
    given = overrides or ()
    if best:
        _print_best(config, given, nodes or 1, link)
    elif measure:
        _measure(config, given, nodes, ranks_per_node, link, as_json)
    elif is_first_rank():
        _print_outline(load(config, given), ranks, most_ranks)


def _check_options(
    measure: bool,
    best: bool,
    *,
    neither: dict[str, object],
    measured: dict[str, object],
    either: dict[str, object],
) -> None:
    """Raise `ConfigError` for options that do not go with the others, or lack the one that they belong to."""
    if measure and best:
        raise ConfigError("--best measures by itself: leave out --measure")
    for option, value in neither.items():
        if value and measure:
            raise ConfigError(
                f"{option} goes without --measure, which measures the ranks that are launched (mpiexec -n ...)"
            )
        if value and best:
            raise ConfigError(f"{option} goes without --best, which finds the number of ranks by itself")
    for option, value in measured.items():
        if value and not measure:
            raise ConfigError(f"{option} goes with --measure")
    for option, value in either.items():
        if value and not (measure or best):
            raise ConfigError(f"{option} goes with --measure or --best")


def _print_best(config: Path, overrides: Sequence[str], nodes: int, link: str | None) -> None:
    from lucid.cli.plan.best import print_best
    from lucid.cli.plan.scaling import parse

    if (launched := announced()) and (launched.size or 1) > 1:
        raise ConfigError("--best starts ranks by itself: run it without mpiexec")
    print_best(config, overrides, nodes, parse(link) if link else None)


def _measure(
    config: Path,
    overrides: Sequence[str],
    nodes: int | None,
    ranks_per_node: int | None,
    link: str | None,
    as_json: bool,
) -> None:
    """Measure steps on the ranks that were launched, and print what they predict. All ranks call this."""
    from lucid.cli.plan import scaling  # a plan that measures nothing needs no compiled kernels

    with session() as group:
        text = run_on_first_rank(group, lambda: json.dumps(load(config, overrides).as_dict()))
        settings = from_dict(json.loads(text))
        scope = scaling.Scope.of(group, nodes, ranks_per_node, link)
        run_on_first_rank(group, lambda: _before(settings, group.size, as_json))
        scaling.measure_and_print(settings, group, scope, as_json)


def _print_outline(settings: RunConfig, ranks: int | None, most_ranks: int | None) -> None:
    """Print what a run on `ranks` ranks will do, or the most ranks that may share its batch, up to `most_ranks`."""
    launched = announced()
    if most_ranks is not None:
        print(settings.ranks_that_serve(most_ranks))
        return
    print_lines(outline(*_checked(settings, ranks or (launched.size if launched else None) or 1)))


def _checked(settings: RunConfig, size: int) -> tuple[RunConfig, Corpora | None, int]:
    """Return the arguments of `outline`. Raises `ConfigError` if `size` ranks do not fit the settings."""
    settings.shared_by(size).check()
    found = all(os.path.lexists(folder) for folder in settings.folders)
    return settings, open_corpora(settings) if found else None, size


def _before(settings: RunConfig, size: int, quiet: bool) -> str:
    """Print the outline, before anything is measured. Raises `ConfigError` if a corpus is missing."""
    arguments = _checked(settings, size)
    if not quiet:
        print_lines(outline(*arguments))
    if arguments[1] is None:
        raise ConfigError("--measure takes real steps, which need the corpus: make it by lucid prepare")
    return ""


def print_lines(lines: Iterable[Line]) -> None:
    """Print the subjects and texts of lines in two columns. All lines are made before the first is printed."""
    for subject, text in list(lines):
        print(f"{subject:13}{text}", flush=True)
