"""`lucid evaluate`: losses and accuracies of a model on held-out documents."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.device import Device
from lucid.cli.model_folder import ModelFolder
from lucid.data import HELD_OUT, Corpus, Sampler
from lucid.distributed import all_or_none, device_for, session, watched
from lucid.errors import ConfigError
from lucid.models import BERTForPreTraining
from lucid.training.checkpoints.checkpoint import STATE_FILE, open_checkpoint
from lucid.training.checkpoints.store import find_model
from lucid.training.config import WATCHDOG_SECONDS, DataSettings, from_dict
from lucid.training.corpora import evaluation_settings
from lucid.training.evaluation import evaluate as evaluate_model
from lucid.training.evaluation import frequency_losses
from lucid.training.start import check_tokenizer

# Tokens in a sequence, for a model without a run.
_LENGTH = 128


def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The folder of a run, a checkpoint or a model.", show_default=False)
    ],
    data: Annotated[
        Path | None, typer.Option(help="A prepared corpus. Default: the run's own.", show_default=False)
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Most held-out samples to take.")] = 4096,
    sequence_length: Annotated[
        int | None,
        typer.Option(min=8, help="Tokens in a sequence. Default: as in the run, or at most 128.", show_default=False),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences that a rank computes at once.")] = 32,
    device: Annotated[Device, typer.Option(help="Device of the ranks.")] = Device.CPU,
    watchdog_seconds: Annotated[
        float, typer.Option(min=0, help="Seconds that ranks wait for a missing one before all end; 0: no limit.")
    ] = WATCHDOG_SECONDS,
) -> None:
    """Print a model's loss and accuracy on held-out documents. Under mpiexec, ranks share the work.

    15% of the tokens are masked, as in BERT, whatever training used. Samples and results are the same on any number of
    ranks.

    Examples:

        lucid evaluate runs/small_cpu

        lucid evaluate models/bert-base --data data/mine --sequence-length 128
    """
    with session() as communicator, watched(communicator, watchdog_seconds):
        opened = all_or_none(communicator, lambda: _open(model, data, sequence_length))
        opened.model.to(device_for(communicator, device))
        with communicator.status.phase("evaluating"):
            result = evaluate_model(
                opened.model,
                opened.sampler,
                communicator,
                samples=samples,
                batch_size=batch_size,
                token_losses=frequency_losses(opened.corpus),
            )
        if communicator.rank == 0:
            print(*opened.remarks, result.sentence(), sep="\n")


@dataclass(frozen=True)
class _Opened:
    """The model, the sampler of held-out samples, the corpus with the token frequencies, and remarks for users."""

    model: BERTForPreTraining
    sampler: Sampler
    corpus: Corpus
    remarks: list[str]


def _open(path: Path, data: Path | None, sequence_length: int | None) -> _Opened:
    folder = find_model(path)
    found = ModelFolder.read(folder)
    found.check_has(("MLM head",), "there is nothing to evaluate: train it first (initial_model)")
    bert = found.model
    settings, seed = _settings(found, data, sequence_length)
    held_out = Corpus.open(settings.path, HELD_OUT)
    check_tokenizer(folder, held_out)
    if bert.config.vocab_size < held_out.vocab_size:
        raise ConfigError(
            f"{folder} knows {bert.config.vocab_size} tokens, {settings.path} has {held_out.vocab_size}: "
            "prepare the text with the model's own tokenizer (lucid prepare --tokenizer)"
        )
    if settings.sequence_length > bert.config.max_position_embeddings:
        longest = bert.config.max_position_embeddings
        raise ConfigError(f"--sequence-length is {settings.sequence_length}, but {folder} takes {longest} at most")
    sampler = Sampler(held_out, evaluation_settings(settings), seed)
    remarks = [] if found.judges_pairs else [f"{folder} cannot judge pairs: only the MLM head is evaluated"]
    return _Opened(bert, sampler, Corpus.open(settings.path), remarks)


def _settings(found: ModelFolder, data: Path | None, sequence_length: int | None) -> tuple[DataSettings, int]:
    """Return the settings and the seed of the samples: those of the run, or defaults for any other model."""
    folder = found.folder
    if (folder / STATE_FILE).exists():
        config = from_dict(open_checkpoint(folder).state.config)
        settings, seed = config.data, config.train.seed
    elif data is not None:
        length = min(_LENGTH, found.model.config.max_position_embeddings)
        # Without validation: opening the corpus reports what is wrong with the path.
        settings = DataSettings.model_construct(path=data, sequence_length=length, nsp=found.judges_pairs)
        seed = 0
    else:
        raise ConfigError(f"{folder} does not belong to a run and names no corpus: add --data")
    changes = {"path": data, "sequence_length": sequence_length}
    return settings.model_copy(update={name: value for name, value in changes.items() if value is not None}), seed
