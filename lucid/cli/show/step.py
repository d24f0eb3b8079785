"""Prints rows of a step: their segments with masks and labels, where they come from, and their losses."""

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from lucid.analysis.samples import Losses, Sample, Samples, Segment, row_losses
from lucid.data.tokenizer import CONTINUING
from lucid.errors import ConfigError
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.checkpoint import open_checkpoint, read_state
from lucid.training.config.sections import AUTO
from lucid.training.dealing import Dealer, dealt_by_place
from lucid.training.history import History

# Rows that are shown unless others are asked for.
FIRST_ROWS = 4
_LEGEND = "[a|b] is a token to predict: the model sees a (MASK, a random token, or b itself) and has to find b"
_COLOURS = {"masked": "yellow", "replaced": "red", "kept": "green"}
_SPECIAL = ("[CLS]", "[SEP]")


@dataclass(frozen=True)
class Row:
    """A sample, the (rank, micro-batch) that computes it if the number of ranks is given, and its losses if wanted."""

    sample: Sample
    place: tuple[int, int] | None
    losses: Losses | None


def print_step(
    history: History, step: int, rows: range, ranks: int | None, checkpoint: int | None, as_json: bool
) -> None:
    """Print these rows of the global batch of a step, and their losses at a `checkpoint` if its step is given.

    Raises a `LucidError` if there is no such step or row, or if so many `ranks` cannot share the batch.
    """
    stretch = history.at(step)
    config = stretch.config
    if ranks is not None:
        config.shared_by(ranks).check()
        if config.train.micro_batch == AUTO:
            raise ConfigError(
                "train.micro_batch is auto, which the start of the run chooses: give a number for --rank-of"
            )
    if rows.stop > (batch_size := config.train.global_batch):
        raise ConfigError(
            f"there is no row {rows.stop - 1:,}: the rows of the global batch are 0 to {batch_size - 1:,}"
        )
    samples = Samples(stretch)
    places: list[tuple[int, int]] | None = None
    if ranks is not None:
        places = Dealer(config, samples.mixture, ranks).places(step - 1, stretch.samples_before(step))
    batch = samples.batch(step, rows)
    losses: Iterator[Losses | None] = iter([None] * len(rows))
    if checkpoint is not None:
        folder = open_checkpoint(history.checkpoints[checkpoint]).folder
        losses = row_losses(BERTForPreTraining.read(folder)[0], batch)
    shown = (
        Row(sample, None if places is None else places[sample.row], of_row)
        for sample, of_row in zip(samples.samples(step, batch), losses, strict=True)
    )
    if as_json:
        for row in shown:
            print(json.dumps(_as_json(step, row, checkpoint)))
    else:
        _print(history, samples, step, rows, shown, checkpoint)
    if ranks is not None and not dealt_by_place(config, ranks) and _was_dealt_by_place(history, step):
        remark = "an earlier version of lucid trained this step: its ranks had rows by place, rank 0 the first ones"
        print(remark, file=sys.stderr)


def _was_dealt_by_place(history: History, step: int) -> bool:
    """Return whether a step was trained before rows were dealt by length. Since then checkpoints note the ranks."""
    after = min((each for each in history.checkpoints if each >= step), default=None)
    return after is not None and read_state(history.checkpoints[after]).ranks is None


def _as_json(step: int, row: Row, checkpoint: int | None) -> dict[str, Any]:
    sequences = [
        {"segments": [_segment_as_json(segment) for segment in sequence.segments], "nsp_label": sequence.nsp_label}
        for sequence in row.sample.sequences
    ]
    content = {"step": step, **vars(row.sample), "sequences": sequences}
    if row.place is not None:
        content |= dict(zip(("rank", "micro_batch"), row.place, strict=True))
    if row.losses is not None:
        content |= {"checkpoint": checkpoint, "losses": asdict(row.losses)}
    return content


def _segment_as_json(segment: Segment) -> dict[str, Any]:
    """Return a segment with its tokens in two lists: what the model sees, and what is to be found or null."""
    tokens, labels = [token.input for token in segment.tokens], [token.label for token in segment.tokens]
    return {**vars(segment), "tokens": tokens, "labels": labels}


def _print(
    history: History, samples: Samples, step: int, rows: range, shown: Iterable[Row], checkpoint: int | None
) -> None:
    console, config = Console(highlight=False), samples.stretch.config
    batch = config.train.global_batch
    which = f"rows {rows.start} to {rows.stop - 1}" if len(rows) > 1 else f"row {rows.start}"
    more = " (others: --rows FIRST-LAST or all)" if len(rows) < batch else ""
    rate = config.masking_rate
    masked = f"; {rate.at(step - 1):.1%} of the tokens to predict" if rate.changes else ""
    for line in (f"step {step:,} of {history.last:,}: {which} of {batch:,}{more}{masked}", _LEGEND):
        console.print(Text(line), soft_wrap=True)
    losses = []
    several = len(config.data.corpora) > 1
    for row in shown:
        _print_row(console, row, several)
        losses.append(row.losses)
    if without := samples.without_origins:
        folders = " and ".join(map(str, without))
        text = f"{folders}: an earlier version of lucid prepared it, and did not note the files of its documents."
        console.print(Text(f"\n{text} Prepare it again with --overwrite to see them."), soft_wrap=True)
    if checkpoint is not None:
        seen = ", which has trained on them" if checkpoint >= step and samples.stretch.known else ""
        total = _in_words(Losses.total([each for each in losses if each]))
        console.print(Text(f"\n{which} at the checkpoint of step {checkpoint:,}{seen}: {total}"), soft_wrap=True)


def _print_row(console: Console, row: Row, several_corpora: bool) -> None:
    sample = row.sample
    corpus = f" of {sample.corpus}" if several_corpora else ""
    about = [f"sample {sample.sample:,} of the run, {sample.index:,} of epoch {sample.epoch:,}{corpus}"]
    if row.place is not None:
        about.append(f"rank {row.place[0]}, micro-batch {row.place[1]}")
    if row.losses is not None:
        about.append(_in_words(row.losses))
    console.print(Text.assemble((f"\nrow {sample.row}", "bold"), f"  {'; '.join(about)}"), soft_wrap=True)
    for number, sequence in enumerate(sample.sequences, start=1):
        of_row = str(number) if len(sample.sequences) > 1 else ""
        for segment in sequence.segments:
            name, relation = f"{'AB'[segment.token_type]}{of_row}", ""
            if segment.token_type == 1:
                relation = f", NSP label {sequence.nsp_label}: {('it follows', 'random')[sequence.nsp_label or 0]}"
            console.print(Text(f"  {name:3}{_origin(segment)}{relation}", "cyan"), soft_wrap=True)
            if console.is_terminal:
                console.print(Padding(joined(segment), (0, 0, 0, 5)))
            else:
                console.print(Text.assemble(" " * 5, joined(segment)), soft_wrap=True)
    console.print(Text(f"     {sample.padding} slots of padding", "dim"), soft_wrap=True)


def _origin(segment: Segment) -> str:
    return segment.origin or f"document {segment.document:,}"


def joined(segment: Segment) -> Text:
    """Return the tokens of a segment; pieces of a word are joined, and tokens to predict are [seen|true]."""
    joined, before = Text(), _SPECIAL[0]
    for token in segment.tokens:
        text = token.label or token.input
        continues, before = text.startswith(CONTINUING) and before not in _SPECIAL, text
        joined.append("" if continues or not joined else " ")
        if token.how is not None:
            seen = "MASK" if token.how == "masked" else token.input
            joined.append(f"[{seen}|{token.label}]", _COLOURS[token.how])
        else:
            joined.append(text.removeprefix(CONTINUING) if continues else text, "dim" if text in _SPECIAL else "")
    return joined


def _in_words(losses: Losses) -> str:
    """Return the means of losses, in nats."""
    parts = []
    if losses.masked:
        parts.append(f"MLM loss {losses.mlm / losses.masked:.3f} over {losses.masked:,} tokens")
    if losses.pairs:
        parts.append(f"NSP loss {losses.nsp / losses.pairs:.3f}")
    return ", ".join(parts) or "no labels"
