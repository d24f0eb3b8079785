"""`lucid export`: makes a model folder for `transformers` from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.report.card import CARD_FILE, write_card
from lucid.cli.model_folder import ModelFolder, check_new
from lucid.cli.model_options import BestOption
from lucid.files import read_bytes, replacing
from lucid.training.checkpoints.digests import Digests
from lucid.training.checkpoints.store import find_model


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The folder of a run, a checkpoint or a model.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to make.", show_default=False)],
    best: BestOption = False,
) -> None:
    """Export a run's newest checkpoint, or its best, as a model folder for transformers.

    OUTPUT gets config.json, model.safetensors and the tokenizer's files. A padded vocabulary is cut to the tokenizer's.
    Parts of the model that were never trained are left out. digests.json says what the weights come from: digests of
    the checkpoint, corpus, tokenizer and settings, and the software, with which lucid verify can be repeated.
    README.md is a model card of what the run recorded; that of a model that lucid has not trained is copied.
    In Python, `transformers.BertForPreTraining.from_pretrained("OUTPUT")` loads the folder.

    Examples:

        lucid export runs/small_cpu models/small

        lucid export runs/small_cpu models/small --best
    """
    source = find_model(model, best)
    check_new(output)
    found = ModelFolder.read(source)
    tokenizer = found.tokenizer()
    with replacing(output.absolute()) as aside:
        remarks = found.write(aside, found.model.with_vocabulary(tokenizer.get_vocab_size()), tokenizer)
        if found.checkpoint is not None:
            Digests.of(found.checkpoint).exported(aside).write(aside)
        if found.checkpoint is None and (source / CARD_FILE).is_file():
            (aside / CARD_FILE).write_bytes(read_bytes(source / CARD_FILE))
        else:
            write_card(aside, output.absolute().name, [found.checkpoint] if found.checkpoint else [])
    print(f"{output} holds the model of {source}", *remarks, sep="\n")
