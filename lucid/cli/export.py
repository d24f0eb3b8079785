"""`lucid export`: makes a model folder for `transformers` from a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from lucid.cli.model_folder import ModelFolder
from lucid.data.tokenizer import save_tokenizer
from lucid.errors import CheckpointError
from lucid.files import replacing
from lucid.models.bert import hub
from lucid.models.bert.sentence_transformers import read_files, write_files
from lucid.models.bert.stored_weights import PARTS, in_words
from lucid.training.checkpoints.checkpoint import STATE_FILE, Inherited, open_checkpoint
from lucid.training.checkpoints.store import find_model


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The folder of a run, or of one checkpoint.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to make.", show_default=False)],
) -> None:
    """Export a run's newest checkpoint as a model folder for transformers.

    OUTPUT gets config.json, model.safetensors and the tokenizer's files. A padded vocabulary is cut to the tokenizer's.
    Parts of the model that were never trained are left out.
    In Python, `transformers.BertForPreTraining.from_pretrained("OUTPUT")` loads the folder.

    Examples:

        lucid export runs/small_cpu models/small
    """
    source = find_model(model)
    if output.exists() and any(output.iterdir() if output.is_dir() else [output]):
        raise CheckpointError(f"{output} exists and is not an empty folder: choose another")
    found = ModelFolder.read(source)
    tokenizer = found.tokenizer()
    bert = found.model.with_vocabulary(tokenizer.get_vocab_size())
    inherited, remarks = _inherited(found)
    absent = tuple(part for part in PARTS if part in inherited.untrained)
    # The head for pairs reads what the pooler makes.
    useless = ("NSP head",) if "pooler" in absent and "NSP head" not in absent else ()
    prefixes = tuple(PARTS[part] for part in absent + useless)
    weights = {name: array for name, array in bert.state_dict().items() if not name.startswith(prefixes)}
    with replacing(output.absolute()) as aside:
        hub.write(aside, bert.config, weights)
        save_tokenizer(tokenizer, aside, bert.config.max_position_embeddings)
        write_files(aside, inherited.sentence_transformers)
    print(f"{output} holds the model of {source}")
    if absent:
        print(f"it has no {in_words(absent)}, because {source} has none that was trained")
    if useless:
        print("it has no NSP head either, because that needs the pooler")
    print(*remarks, sep="\n", end="\n" * bool(remarks))


def _inherited(found: ModelFolder) -> tuple[Inherited, list[str]]:
    """Return what the model has from where its training began, and sentences about what is left out of it."""
    if (found.folder / STATE_FILE).exists():
        return open_checkpoint(found.folder).state.inherited, []
    files, remarks = read_files(found.folder, found.model.config.max_position_embeddings)
    return Inherited(list(found.weights.missing), files), found.weights.remarks_on_the_rest() + remarks
