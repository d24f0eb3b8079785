"""`lucid average`: makes one model of several checkpoints, the mean of their weights."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.report.card import write_card
from lucid.cli.model_folder import ModelFolder, check_new
from lucid.errors import CheckpointError, ConfigError
from lucid.files import replacing
from lucid.models.bert.averaging import mean_of
from lucid.models.bert.hub import read_config
from lucid.models.bert.memory import check_model_fits
from lucid.models.bert.stored_weights import stored_weights
from lucid.training.checkpoints.checkpoint import Checkpoint, open_checkpoint
from lucid.training.checkpoints.store import CheckpointStore
from lucid.training.digests import Digests
from lucid.training.start import check_same_shape

AVERAGED_FILE = "averaged.json"
# Of a run's checkpoints.
_LAST = 5


def average(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|CHECKPOINT...", help="The folder of a run, or of several checkpoints.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to make.", show_default=False)],
    last: Annotated[
        int | None,
        typer.Option(min=2, help=f"Checkpoints of the run, the newest ones. Default: {_LAST}.", show_default=False),
    ] = None,
) -> None:
    """Average the weights of checkpoints, and write the mean as a model folder for transformers.

    The mean is computed in double precision and rounded once. OUTPUT gets what lucid export writes, and averaged.json,
    which says of which checkpoints it is the mean. train.keep_checkpoints and train.keep_every keep checkpoints for it.

    Examples:

        lucid average runs/small_cpu models/mean --last 2

        lucid average runs/a/checkpoints/0001-000[678]0000 models/mean
    """
    check_new(output)
    checkpoints = _of_run(sources[0], last or _LAST) if len(sources) == 1 else _given(sources, last)
    _check_alike(checkpoints)
    newest = checkpoints[-1]
    config = read_config(newest.folder)
    check_model_fits(newest.folder, config)
    weights = [stored_weights(checkpoint.folder, config) for checkpoint in checkpoints]
    found = ModelFolder(newest.folder, mean_of(config, weights), weights[-1])
    tokenizer = found.tokenizer()
    origins = [{"checkpoint": str(each.folder), **asdict(Digests.of(each))} for each in checkpoints]
    with replacing(output.absolute()) as aside:
        remarks = found.write(aside, found.model.with_vocabulary(tokenizer.get_vocab_size()), tokenizer)
        write_card(aside, output.absolute().name, checkpoints)
        (aside / AVERAGED_FILE).write_text(json.dumps(origins, indent=2) + "\n", encoding="utf-8")
    print(f"{output} holds the mean of {len(checkpoints)} checkpoints", *map(_line, checkpoints), *remarks, sep="\n")


def _line(checkpoint: Checkpoint) -> str:
    return f"step {checkpoint.state.step:,}  {checkpoint.folder}"


def _of_run(run: Path, last: int) -> list[Checkpoint]:
    """Return the `last` newest checkpoints of the run in a folder, in order. Raises `CheckpointError`."""
    if not (run / "checkpoints").is_dir():
        raise CheckpointError(f"{run} is not the folder of a run: give that, or two or more checkpoints, and OUTPUT")
    states, problems = CheckpointStore(run / "checkpoints").states()
    if len(states) < last:
        damaged = f" ({problems[0]})" if problems else ""
        raise CheckpointError(
            f"{run} has {len(states)} of the {last} checkpoints to average{damaged}: give a smaller --last, or keep "
            "more of them in training (train.keep_checkpoints, train.keep_every)"
        )
    return [open_checkpoint(folder) for folder in reversed(list(states)[:last])]


def _given(folders: list[Path], last: int | None) -> list[Checkpoint]:
    if last is not None:
        raise ConfigError("--last chooses checkpoints of one run, but several folders are given: leave it out")
    for folder in folders:
        if (folder / "checkpoints").is_dir():
            raise ConfigError(f"{folder} is the folder of a run: give one run alone, or checkpoints")
    return [open_checkpoint(folder) for folder in folders]


def _check_alike(checkpoints: list[Checkpoint]) -> None:
    """Raise `CheckpointError` if the mean of checkpoints would mean nothing."""
    *others, one = checkpoints
    for other in others:
        check_same_shape(read_config(other.folder), read_config(one.folder), f"{other.folder} and {one.folder}")
        if other.state.tokenizer != one.state.tokenizer:
            raise CheckpointError(
                f"{other.folder} and {one.folder} have different tokenizers: their mean has no meaning"
            )
        if other.state.inherited.untrained != one.state.inherited.untrained:
            raise CheckpointError(
                f"{other.folder} and {one.folder} have not trained the same parts of the model: average checkpoints "
                "that have"
            )
