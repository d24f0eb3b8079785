"""`lucid export`: makes a model folder for `transformers` from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.analysis.report.card import CARD_FILE, write_card
from lucid.cli.model_folder import ModelFolder, check_new, chosen_model
from lucid.cli.model_options import BestOption, ModelArgument, PoolingOption
from lucid.errors import ConfigError
from lucid.files import read_bytes, replacing
from lucid.training.digests import Digests


def export(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to make.", show_default=False)],
    best: BestOption = False,
    sentence_transformers: Annotated[
        bool,
        typer.Option("--sentence-transformers", help="Add the files with which sentence-transformers opens OUTPUT."),
    ] = False,
    pooling: PoolingOption = None,
) -> None:
    """Export a run's newest checkpoint, or its best, as a model folder for transformers.

    OUTPUT gets config.json, model.safetensors and the tokenizer's files. A padded vocabulary is cut to the tokenizer's.
    Parts of the model that were never trained are left out. digests.json says what the weights come from: digests of
    the checkpoint, corpus, tokenizer and settings, and the software, with which lucid verify can be repeated.
    README.md is a model card of what the run recorded; the card of a model that lucid did not train is copied.
    In Python, `transformers.BertForPreTraining.from_pretrained("OUTPUT")` loads the folder. With
    --sentence-transformers, `SentenceTransformer("OUTPUT")` does too, and has the vectors of lucid embed.

    Examples:

        lucid export runs/small_cpu models/small

        lucid export runs/small_cpu models/small --best

        lucid export runs/small_cpu models/vectors --sentence-transformers
    """
    if pooling is not None and not sentence_transformers:
        raise ConfigError("--pooling is written for sentence-transformers only: add --sentence-transformers")
    source = chosen_model(model, best)
    check_new(output)
    found = ModelFolder.read(source)
    files = {}
    if sentence_transformers:
        settings = found.sentence_settings(pooling.value if pooling else None, None)
        files = settings.files(found.model.config.hidden_size)
    tokenizer = found.tokenizer()
    with replacing(output.absolute()) as aside:
        remarks = found.write(aside, found.model.with_vocabulary(tokenizer.get_vocab_size()), tokenizer, files)
        if found.checkpoint is not None:
            Digests.of(found.checkpoint).exported(aside).write(aside)
        if found.checkpoint is None and (source / CARD_FILE).is_file():
            (aside / CARD_FILE).write_bytes(read_bytes(source / CARD_FILE))
        else:
            write_card(aside, output.absolute().name, [found.checkpoint] if found.checkpoint else [])
    print(f"{output} holds the model of {source}", *remarks, sep="\n")
