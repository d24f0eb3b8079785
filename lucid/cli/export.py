"""`lucid export`: makes a model folder for `transformers` from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.model_folder import load_model
from lucid.data.tokenizer import save_tokenizer
from lucid.errors import CheckpointError
from lucid.files import replacing
from lucid.training.checkpoints.store import find_model


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The folder of a run, or of one checkpoint.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to make.", show_default=False)],
) -> None:
    """Export a run's newest checkpoint as a model folder for transformers.

    OUTPUT gets config.json, model.safetensors and the tokenizer's files. A padded vocabulary is cut to the tokenizer's.

    Examples:

        lucid export runs/small_cpu models/small

        python -c "from transformers import BertForPreTraining as B; B.from_pretrained('models/small')"
    """
    source = find_model(model)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise CheckpointError(f"{output} exists and is not an empty folder: choose another")
    bert, tokenizer = load_model(source)
    bert = bert.with_vocabulary(tokenizer.get_vocab_size())
    with replacing(output.absolute()) as aside:
        bert.save_pretrained(aside)
        save_tokenizer(tokenizer, aside)
    print(f"{output} holds the model of {source}")
