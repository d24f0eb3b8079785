"""`lucid predict`: fills `[MASK]`, says whether a second sentence follows, or predicts the labels of a classifier."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from lucid.autograd import no_grad
from lucid.cli.device import Device, place_of
from lucid.cli.labels import classifier_in, predicted_labels
from lucid.cli.model_folder import ModelFolder, chosen_model
from lucid.cli.model_options import BestOption, ModelArgument
from lucid.data import special_tokens
from lucid.errors import ConfigError
from lucid.training.checkpoints.checkpoint import STATE_FILE, open_checkpoint
from lucid.training.config import from_dict


def predict(
    model: ModelArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A sentence, with [MASK] in it.", show_default=False)],
    second: Annotated[
        str | None, typer.Option("--next", metavar="TEXT", help="A sentence that may follow TEXT.", show_default=False)
    ] = None,
    best: BestOption = False,
    device: Annotated[Device, typer.Option(help="Device of the model.")] = Device.CPU,
    top: Annotated[int, typer.Option(min=1, help="Candidates to show for each [MASK].")] = 5,
) -> None:
    """Fill [MASK] in a sentence; with --next, predict whether a second sentence follows it.

    For each [MASK] the most probable tokens are printed, with their probabilities. A model that lucid finetune has
    written predicts the label of TEXT, or of TEXT and the second one, or of each word.

    Examples:

        lucid predict runs/small_cpu "return a new list [MASK] the items."

        lucid predict runs/small_cpu "the file is opened." --next "it is closed."

        lucid predict models/topics "how do I open a file?"
    """
    for words in (text, second or ""):
        if words.encode(errors="replace").decode() != words:
            raise ConfigError(f"{words!r} holds bytes that are not UTF-8: set the terminal's encoding to UTF-8")
    folder = chosen_model(model, best)
    if (classifier := classifier_in(folder)) is not None:
        print(*predicted_labels(classifier, folder, text, second, device, top), sep="\n")
        return
    found = ModelFolder.read(folder)
    bert, tokenizer = found.model, found.tokenizer()
    if second is not None and bert.config.type_vocab_size < 2:
        raise ConfigError(f"the model in {folder} cannot judge pairs (its type_vocab_size is 1): leave out --next")
    if second is not None and not _has_learnt_pairs(folder):
        raise ConfigError(f"the model in {folder} was trained without pairs (data.nsp is false): leave out --next")
    if second is not None:
        found.check_has(("pooler", "NSP head"), "it cannot judge pairs: leave out --next")
    bert.to(place_of(device)).eval()
    encoding = tokenizer.encode(text, second) if second is not None else tokenizer.encode(text)
    ids = np.array([encoding.ids])
    masked = np.flatnonzero(ids[0] == special_tokens(tokenizer).mask)
    if len(masked) == 0 and second is None:
        raise ConfigError("there is nothing to predict: put [MASK] into the text, or add --next")
    if len(masked):
        found.check_has(("MLM head",), "it cannot fill [MASK]: train it first (initial_model)")
    if ids.shape[1] > bert.config.max_position_embeddings:
        raise ConfigError(
            f"the text has {ids.shape[1]} tokens, the model takes {bert.config.max_position_embeddings}: shorten it"
        )
    with no_grad():
        scores, next_scores = bert(ids, token_type_ids=np.array([encoding.type_ids]))
    for number, position in enumerate(masked, start=1):
        probabilities = scores[0, int(position)].softmax().numpy()[: tokenizer.get_vocab_size()]
        candidates = np.argsort(-probabilities)[:top]
        print(
            f"[MASK] {number}: " + ", ".join(f"{tokenizer.id_to_token(i)} {probabilities[i]:.1%}" for i in candidates)
        )
    if second is not None:
        follows = float(next_scores[0].softmax().numpy()[0])
        print(f"the second sentence {'follows' if follows >= 0.5 else 'does not follow'} ({follows:.1%} that it does)")


def _has_learnt_pairs(folder: Path) -> bool:
    """Return whether the model's run, if known, trained on sentence pairs."""
    return not (folder / STATE_FILE).exists() or from_dict(open_checkpoint(folder).state.config).data.nsp
