"""`lucid explain`: what the loss curve of a run says, in words."""

import sys
from typing import Annotated

import typer

from lucid.analysis.explained import Explained, explained, worst_rows
from lucid.cli.run_settings import Overrides, RunArgument
from lucid.cli.show.step import print_step
from lucid.distributed import is_first_rank
from lucid.training.formatting import count
from lucid.training.history import History


def explain(
    run: RunArgument,
    overrides: Overrides = None,
    rows: Annotated[
        int,
        typer.Option(min=0, help="Samples to show of each spike: those that fit worst at the checkpoint before it."),
    ] = 0,
) -> None:
    """Say what the loss curve of a run means: what is wrong, from which evidence, and what to try.

    A run that still trains can be explained, too, and so can a copy of its folder. If its corpus has moved, say where
    it is (data.path=FOLDER).

    Examples:

        lucid explain runs/mine

        lucid explain runs/mine --rows 3
    """
    if not is_first_rank():
        return
    found = explained(run, overrides or ())
    for remark in found.remarks:
        print(remark, file=sys.stderr)
    print(_where_it_stands(found))
    for finding in found.findings:
        print(f"\n{'warning' if finding.is_alarm else 'note'}: {finding}")
    if not any(finding.is_alarm for finding in found.findings):
        print("\nnothing looks wrong")
    if not found.spikes:
        if rows:
            print("there are no spikes whose rows could be shown")
        return
    print("\nspikes:")
    history = History.of(run, overrides or ()) if rows else None
    for spike in found.spikes:
        print(f"  {spike.where}: {spike.metric} {spike.value:.3f}, usual there: {spike.usual:.3f}")
        if history is not None:
            checkpoint = history.checkpoint_for(spike.first)
            for step, row, _ in worst_rows(history, spike, rows):
                print_step(history, step, range(row, row + 1), None, checkpoint, as_json=False)


def _where_it_stands(found: Explained) -> str:
    """Return the state of the run in a line: its last step, and its losses, compared with those of counts."""
    curve = found.curve
    parts = [f"{count(curve.last, 'step')}"]
    if len(curve.training):
        parts.append(f"training MLM loss {curve.training.last_value('mlm_loss'):.3f}")
    if len(curve.held_out):
        held_out = curve.held_out
        at = count(int(held_out.step[-1]), "step")
        loss = f"held-out MLM loss {held_out.last_value('held_out_mlm_loss'):.3f} after {at}"
        counts = [
            f"by {name} {value:.3f}"
            for name, key in (("token frequency", "held_out_frequency_loss"), ("bigrams", "held_out_bigram_loss"))
            if (value := held_out.last_value(key)) == value
        ]
        parts.append(f"{loss} ({', '.join(counts)})" if counts else loss)
    return ", ".join(parts)
