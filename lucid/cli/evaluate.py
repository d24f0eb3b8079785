"""`lucid evaluate`: losses and accuracies of a model on held-out documents."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.device import Device
from lucid.cli.model_folder import ModelFolder, agreed_model
from lucid.cli.model_options import BestOption, ModelArgument, WatchdogOption
from lucid.distributed import all_or_none, device_for, session, watched
from lucid.errors import ConfigError, DataError
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.checkpoint import STATE_FILE, open_checkpoint
from lucid.training.config import WATCHDOG_SECONDS, DataSettings, from_dict
from lucid.training.corpora import open_alike, open_held_out, why_unevaluated
from lucid.training.counts.kept import KeptCounts
from lucid.training.counts.losses import bigram_loss
from lucid.training.evaluation import evaluate as evaluate_model
from lucid.training.held_out import HeldOut
from lucid.training.start import check_tokenizer

# Tokens in a sequence, for a model without a run.
_LENGTH = 128


def evaluate(
    model: ModelArgument,
    best: BestOption = False,
    data: Annotated[
        Path | None, typer.Option(help="A prepared corpus. Default: all those of the run.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most held-out samples to take.")] = 4096,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=8, help="Tokens in a sequence. Default: as in the run, or at most 128.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences that a rank computes at once.")] = 32,
    device: Annotated[Device, typer.Option(help="Device of the ranks.")] = Device.CPU,
    watchdog_seconds: WatchdogOption = WATCHDOG_SECONDS,
) -> None:
    """Print a model's loss and accuracy on held-out documents. Under mpiexec, ranks share the work.

    15% of the tokens are masked, as in BERT, whatever training used. Samples and results are the same on any number of
    ranks. Of a run on several corpora, the first line is for all of them, by their weights, and each has a line.

    Examples:

        lucid evaluate runs/small_cpu

        lucid evaluate models/bert-base --data data/mine --sequence-length 128
    """
    with session() as communicator, watched(communicator, watchdog_seconds):
        folder = agreed_model(communicator, model, best)
        opened = all_or_none(communicator, lambda: _open(model, folder, data, sequence_length))
        opened.model.to(device_for(communicator, device))
        with communicator.status.phase("evaluating"):
            results = evaluate_model(
                opened.model,
                opened.held_out,
                communicator,
                samples=samples,
                batch_size=batch_size,
                bigram_loss=partial(bigram_loss, KeptCounts()),
            )
        if communicator.rank == 0:
            print(*opened.remarks, *results.sentences(), sep="\n")


@dataclass(frozen=True)
class _Opened:
    """The model, the corpora that it is evaluated on, and remarks for users."""

    model: BERTForPreTraining
    held_out: tuple[HeldOut, ...]
    remarks: list[str]


def _open(given: Path, folder: Path, data: Path | None, sequence_length: int | None) -> _Opened:
    """Open the model in `folder`, which is the checkpoint that was found if a run was `given`."""
    found = ModelFolder.read(folder)
    found.check_has(("MLM head",), "there is nothing to evaluate: train it first (initial_model)")
    bert = found.model
    settings, others, seed = _settings(found, data, sequence_length)
    corpora = open_alike([*settings.folders, *others])
    first = corpora[0]
    check_tokenizer(folder, first)
    if bert.config.vocab_size < first.vocab_size:
        raise ConfigError(
            f"{folder} knows {bert.config.vocab_size} tokens, {first.folder} has {first.vocab_size}: "
            "prepare the text with the model's own tokenizer (lucid prepare --tokenizer)"
        )
    if settings.sequence_length > bert.config.max_position_embeddings:
        longest = bert.config.max_position_embeddings
        raise ConfigError(f"--sequence-length is {settings.sequence_length}, but {folder} takes {longest} at most")
    held_out, remark = open_held_out(settings, corpora, seed)
    if not held_out:
        raise DataError(why_unevaluated(corpora))
    remarks = [f"checkpoint  {folder}"] if folder != given else []
    remarks += [] if remark is None else [remark]
    if not found.judges_pairs:
        remarks.append(f"{folder} cannot judge pairs: only the MLM head is evaluated")
    return _Opened(bert, held_out, remarks)


def _settings(
    found: ModelFolder, data: Path | None, sequence_length: int | None
) -> tuple[DataSettings, tuple[Path, ...], int]:
    """Return the settings of the samples, other corpora to evaluate, and the seed.

    They are those of the run, or defaults for any other model; with `data`, that corpus alone is evaluated.
    """
    folder = found.folder
    others: tuple[Path, ...] = ()
    if (folder / STATE_FILE).exists():
        config = from_dict(open_checkpoint(folder).state.config)
        settings, seed = config.data, config.train.seed
        others = () if data else config.train.evaluate_also
    elif data is not None:
        length = min(_LENGTH, found.model.config.max_position_embeddings)
        # Without validation: opening the corpus reports what is wrong with the path.
        settings = DataSettings.model_construct(path=data, sequence_length=length, nsp=found.judges_pairs)
        seed = 0
    else:
        raise ConfigError(f"{folder} does not belong to a run and names no corpus: add --data")
    changes = {"path": data, "sequence_length": sequence_length}
    given = {name: value for name, value in changes.items() if value is not None}
    return settings.model_copy(update=given), others, seed
