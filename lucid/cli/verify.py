"""`lucid verify`: replays steps of a run, and compares them with its record."""

from typing import Annotated

import typer

from lucid.analysis.verification.comparison import Comparison
from lucid.analysis.verification.replay import Replay
from lucid.analysis.verification.verify import verify as verify_run
from lucid.cli.model_options import WatchdogOption
from lucid.cli.run_settings import RunArgument
from lucid.distributed import session, watched
from lucid.errors import ExitCode
from lucid.training.checkpoints.checkpoint import open_checkpoint
from lucid.training.config import WATCHDOG_SECONDS
from lucid.training.digests import Digests
from lucid.training.formatting import count
from lucid.training.running import process_as_it_was

# Names of parameters that a report lists.
_LISTED = 3


def verify(
    run: RunArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data.path=FOLDER]", help="Where the corpus is now, if it has moved."),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Replay the steps from checkpoint A to checkpoint B; 0 is the beginning, and without B it is the "
            "newest one. Default: between the two newest.",
            show_default=False,
        ),
    ] = None,
    watchdog_seconds: WatchdogOption = WATCHDOG_SECONDS,
) -> int:
    """Replay steps of a run between two checkpoints, and say whether the same bits come out.

    Nothing in RUN is changed. A run with the exact reduction can be replayed on any number of ranks that it allows, one
    with the fast reduction on as many as it had. If its corpus has moved, add data.path=FOLDER.

    Exit code 0: weights, moments, counters and log have the same bits. 1: they differ; the output says where. 2: these
    steps cannot be replayed; the message says why.

    Examples:

        lucid verify runs/small_cpu

        lucid verify runs/small_cpu --steps 0:1000

        mpiexec -n 4 lucid verify runs/small_cpu --steps 12000:12200
    """
    with session() as group, process_as_it_was(), watched(group, watchdog_seconds):
        replay, comparison = verify_run(run, steps, overrides or (), group)
        differs = group.all_reduce_scalar(not comparison.is_same) > 0
        if group.rank == 0:
            print(*_lines(replay, comparison, group.size), sep="\n")
    return ExitCode.FAILED if differs else ExitCode.FINISHED


def _lines(replay: Replay, comparison: Comparison, ranks: int) -> list[str]:
    start = f"the checkpoint of step {replay.first:,}" if replay.first else "the beginning"
    lines = [
        f"replayed steps {replay.first + 1:,} to {comparison.step:,} of {replay.config.run_folder} from {start}, on "
        f"{count(ranks, 'rank')} with the {replay.config.train.reduction} reduction"
    ]
    if comparison.environment:
        lines.append(f"what may change bits: {comparison.environment}")
    if not comparison.is_same:
        return lines + _differences(replay, comparison)
    compared = [step for step in replay.checkpoints if step <= comparison.step]
    at = (
        f"at step {compared[-1]:,}"
        if len(compared) == 1
        else f"at {len(compared)} checkpoints up to step {compared[-1]:,}"
    )
    lines.append(f"same bits: weights, moments and counters {at}, and {count(comparison.lines, 'line')} of the log")
    return lines + Digests.of(open_checkpoint(replay.checkpoints[comparison.step])).lines()


def _differences(replay: Replay, comparison: Comparison) -> list[str]:
    before = max((step for step in replay.checkpoints if step < comparison.step), default=replay.first)
    if comparison.arrays or comparison.counters:
        others = f"the one of step {before:,} does not" if before > replay.first else f"the first after step {before:,}"
        lines = [f"other bits: the checkpoint of step {comparison.step:,} differs, {others}"]
    else:
        lines = [f"other lines: the log differs; the checkpoint of step {comparison.step:,} has the same bits"]
    if comparison.logged:
        lines.append(f"  first line of the log that differs, {comparison.logged}")
    lines += [f"  {sentence}" for sentence in comparison.counters]
    lines += [f"  {difference}" for difference in comparison.arrays[:_LISTED]]
    if (more := len(comparison.arrays) - _LISTED) > 0:
        lines.append(f"  and {count(more, 'more name')} of parameters and moments")
    return lines
