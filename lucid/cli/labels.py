"""The labels that a classifier predicts for a text, for `lucid predict`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lucid.autograd import no_grad
from lucid.cli.device import Device, place_of
from lucid.data import load_tokenizer
from lucid.errors import ConfigError
from lucid.models import BERTForSequenceClassification, BERTForTokenClassification
from lucid.models.bert import hub

_Kind = type[BERTForSequenceClassification] | type[BERTForTokenClassification]


def classifier_in(folder: Path) -> _Kind | None:
    """Return the class of the classifier in `folder`; None if it holds another model. Raises `CheckpointError`."""
    named = hub.read_settings(folder).get("architectures")
    kinds = BERTForSequenceClassification, BERTForTokenClassification
    return next((kind for kind in kinds if isinstance(named, list) and kind.architecture in named), None)


def predicted_labels(
    kind: _Kind, folder: Path, text: str, second: str | None, device: Device, top: int
) -> Iterator[str]:
    """Yield the `top` labels of a text or a pair, or a line for each word with its label. Raises `LucidError`."""
    model, tokenizer = kind.from_pretrained(folder), load_tokenizer(folder)
    by_word = isinstance(model, BERTForTokenClassification)
    if by_word and second is not None:
        raise ConfigError(f"the model in {folder} labels words, not pairs: leave out --next")
    words = text.split()
    encoding = tokenizer.encode(words, is_pretokenized=True) if by_word else tokenizer.encode(text, second)
    _check(folder, model, tokenizer, len(encoding.ids), second)
    model.to(place_of(device)).eval()
    with no_grad():
        scores = model(np.array([encoding.ids]), token_type_ids=np.array([encoding.type_ids]))
    probabilities = scores[0].softmax().numpy()
    if not by_word:
        ranked = np.argsort(-probabilities)[:top]
        yield ", ".join(f"{model.labels[label]} {probabilities[label]:.1%}" for label in ranked)
        return
    for number, word in enumerate(words):
        places = [token for token, owner in enumerate(encoding.word_ids) if owner == number]
        if places:
            label = probabilities[places[0]].argmax()
            yield f"{word}\t{model.labels[label]} {probabilities[places[0], label]:.1%}"


def _check(
    folder: Path,
    model: BERTForSequenceClassification | BERTForTokenClassification,
    tokenizer: Tokenizer,
    tokens: int,
    second: str | None,
) -> None:
    """Raise `ConfigError` if the model in `folder` cannot take these tokens."""
    config = model.config
    if second is not None and config.type_vocab_size < 2:
        raise ConfigError(f"the model in {folder} cannot judge pairs (its type_vocab_size is 1): leave out --next")
    if config.vocab_size < tokenizer.get_vocab_size():
        raise ConfigError(f"{folder} has a tokenizer with more tokens than the model: put the model's own there")
    if tokens > config.max_position_embeddings:
        raise ConfigError(f"the text has {tokens} tokens, the model takes {config.max_position_embeddings}: shorten it")
