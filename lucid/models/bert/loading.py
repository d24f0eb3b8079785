"""Makes a model from the weights in a folder, whichever of BERT's classes it is of."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lucid import random
from lucid.models.bert import hub
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.memory import check_model_fits
from lucid.models.bert.stored_weights import StoredWeights, stored_weights
from lucid.nn import Module, init

ModelT = TypeVar("ModelT", bound=Module)


def read_model(folder: Path, make: Callable[[BERTConfig], ModelT], prefix: str = "") -> tuple[ModelT, StoredWeights]:
    """Return the model that `make` makes, with the weights in `folder`, and what these weights are.

    The names of its parameters are those of a `BERTForPreTraining` without `prefix`; weights of other names are not
    used. Parts that the folder lacks are drawn. Raises `CheckpointError`.
    """
    config = hub.read_config(folder)
    weights = stored_weights(folder, config)
    check_model_fits(folder, config)
    state = random.state()
    with init.without_draws():
        model = make(config)
    values = {name.removeprefix(prefix): array for name, array in weights.read(prefix).items()}
    if weights.missing:
        with random.using(state):
            drawn = make(config).state_dict()
        values |= {name: array for name, array in drawn.items() if weights.is_missing(prefix + name)}
    model.load_state_dict(values)
    return model, weights
