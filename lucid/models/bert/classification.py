"""BERT with a head for labels: of whole sequences (or pairs), or of their tokens.

Names of parameters, shapes and `config.json` are those of `BertForSequenceClassification` and
`BertForTokenClassification` in transformers. B batch, T length, C width, L labels, N token rows, S sequences.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import numpy as np

from lucid.autograd import Tensor
from lucid.backend import Array, to_device
from lucid.errors import CheckpointError
from lucid.kernels.masking import IGNORE_INDEX
from lucid.models.bert import hub
from lucid.models.bert.arguments import check_inputs, integers
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.encoder import site_of_head
from lucid.models.bert.heads import HeadLoss, Reduction, most_probable
from lucid.models.bert.memory import check_model_fits
from lucid.models.bert.model import PREFIX, BERTModel
from lucid.models.bert.pretraining import ModelInputs
from lucid.models.bert.stored_weights import in_words, stored_weights
from lucid.models.bert.token_rows import TokenRows
from lucid.nn import Dropout, Linear, Module, init
from lucid.random import at, current_coordinates

_POOLER, _HEAD = "bert.pooler.", "classifier."
_SINGLE_LABEL = "single_label_classification"


class _Classifier(Module):
    """An encoder, dropout and a linear map to the scores of labels. Methods take inputs as `BERTForPreTraining`'s do.

    `labels` are the names of the labels, in the order of their ids. `classifier_dropout` is the probability of dropout
    before the head; None means `hidden_dropout_prob`. Raises `ValueError` if two labels are equal or there are none.
    """

    architecture: ClassVar[str]
    labels_tokens: ClassVar[bool]

    def __init__(self, config: BERTConfig, labels: Sequence[str], classifier_dropout: float | None = None) -> None:
        super().__init__()
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"labels are {list(labels)}; they take one or more names, each once")
        self.config = config
        self.labels = tuple(labels)
        self.classifier_dropout = classifier_dropout
        self.bert = BERTModel(config)
        if self.labels_tokens:  # the pooler makes one vector of a sequence
            del self.bert.pooler
        probability = config.hidden_dropout_prob if classifier_dropout is None else classifier_dropout
        self.dropout = Dropout(probability, site_of_head(config))
        self.classifier = Linear(config.hidden_size, len(labels), config.initializer_range)

    @classmethod
    def from_pretrained(cls, folder: str | Path, labels: Sequence[str] | None = None) -> Self:
        """Read a classifier from a folder with `config.json` and `model.safetensors`, as transformers writes them.

        With `labels` the folder may hold any BERT: its encoder gets a new head for these labels, drawn from
        `lucid.manual_seed`. If it also lacks the pooler that the head reads, this is drawn too, and a warning says so.
        Raises `CheckpointError`.
        """
        model, drawn = cls.read(Path(folder), labels)
        if "pooler" in drawn:
            warnings.warn(f"{folder} has no pooler: newly initialised", stacklevel=2)
        return model

    @classmethod
    def read(cls, folder: Path, labels: Sequence[str] | None = None) -> tuple[Self, tuple[str, ...]]:
        """Do what `from_pretrained` does, without warnings; also return which parts were drawn.

        These are "pooler" and "classifier". Raises `CheckpointError`.
        """
        config = hub.read_config(folder)
        weights = stored_weights(folder, config)
        check_model_fits(folder, config)
        is_whole = labels is None
        names = _stored_labels(folder) if labels is None else labels
        with init.without_draws(is_whole):
            model = cls(config, names, _stored_dropout(folder))
        parameters = model.state_dict()
        values = {name: array for name, array in weights.read(PREFIX).items() if name in parameters}
        if is_whole:
            shapes = {name: array.shape for name, array in parameters.items() if name.startswith(_HEAD)}
            values |= weights.head(shapes) or {}
        missing = [name for name in parameters if name not in values]
        prefixes = {"pooler": _POOLER, "classifier": _HEAD}
        drawn = tuple(part for part, prefix in prefixes.items() if any(name.startswith(prefix) for name in missing))
        if is_whole and drawn:
            raise CheckpointError(
                f"{folder} has no {in_words(drawn)} for its {len(names)} labels: it is no {cls.architecture}; "
                "fine-tune it first (lucid finetune), or give the labels of a new head"
            )
        model.load_state_dict({**parameters, **values})
        return model, drawn

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a folder, from which transformers can load them."""
        more: dict[str, Any] = {
            "architectures": [self.architecture],
            "id2label": {str(number): label for number, label in enumerate(self.labels)},
            "label2id": {label: number for number, label in enumerate(self.labels)},
            "classifier_dropout": self.classifier_dropout,
            "problem_type": None if self.labels_tokens else _SINGLE_LABEL,
        }
        hub.write(Path(folder), self.config, self.state_dict(), more)

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
    ) -> Tensor:
        """Return the scores of the labels, before softmax."""
        rows = self._rows(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return self.scores(rows).reshape(*self._shape(rows), len(self.labels))

    def get_loss(
        self, labels: Any, input_ids: Any = None, *, reduction: Reduction = "mean", **inputs: Unpack[ModelInputs]
    ) -> Tensor:
        """Return the cross-entropy (nats) of `labels`, which are ids. A label of -100 does not count."""
        rows = self._rows(input_ids, **inputs)
        ids = integers("labels", labels, self._shape(rows), len(self.labels), ignored=IGNORE_INDEX)
        return self.losses(rows, ids.astype(np.int64).reshape(-1)).reduced(reduction)

    def predict_labels(self, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> Tensor:
        """Return the ids of the most probable labels: integers. Dropout is off."""
        with self.evaluating():
            return Tensor(most_probable(self(input_ids, **inputs)))

    def _rows(self, input_ids: Any = None, *inputs: Any, **named: Any) -> TokenRows:
        """Return the checked inputs of a public method as `scores` takes them. Padding has scores if tokens have."""
        grid = check_inputs(self.config, self.device, input_ids, *inputs, **named)
        return grid.token_rows(grid.all_slots() if self.labels_tokens else grid.without_padding()).on(self.device)

    def _shape(self, rows: TokenRows) -> tuple[int, ...]:
        """Return the shape of the labels of `rows`."""
        return (rows.grid_rows, rows.sequences.length) if self.labels_tokens else (rows.grid_rows,)

    def scores(self, rows: TokenRows) -> Tensor:
        """Return the scores of labels, before softmax, of rows on the model's device."""
        raise NotImplementedError

    def losses(self, rows: TokenRows, labels: Array) -> HeadLoss:
        """Return the cross-entropy of the `scores` at labels on the model's device: int64, of as many rows as scores.

        A label that is `IGNORE_INDEX` does not count. The host does not wait for a GPU if `labels` are in its memory.
        """
        count = int(np.count_nonzero(labels != IGNORE_INDEX))
        return HeadLoss.of(self.scores(rows), to_device(labels, self.device), count)


class BERTForSequenceClassification(_Classifier):
    """BERT with one label for each sequence, or pair of sequences, which the pooled first token tells.

    Scores are [B, L], labels [B].
    """

    architecture = "BertForSequenceClassification"
    labels_tokens = False

    def scores(self, rows: TokenRows) -> Tensor:
        """Return the scores [S, L] of sequences on the model's device. Each grid row holds one sequence."""
        return self.classifier(self.dropout(self.bert.pooler(self.bert.encode(rows), rows.sequences)))


class BERTForTokenClassification(_Classifier):
    """BERT with a label for each token. It has no pooler.

    Scores are [B, T, L], labels [B, T]. The labels of padding have to be -100.
    """

    architecture = "BertForTokenClassification"
    labels_tokens = True

    def scores(self, rows: TokenRows) -> Tensor:
        """Return the scores [N, L] of token rows on the model's device."""
        hidden = self.bert.encode(rows)
        sequences = rows.sequences
        where = at(sequences.coordinates(current_coordinates(rows.grid_rows))) if self.training else nullcontext()
        with where:
            return self.classifier(self.dropout(hidden))


def _stored_labels(folder: Path) -> list[str]:
    """Return the names of the labels of the classifier in `folder`. Raises `CheckpointError`."""
    settings, path = hub.read_settings(folder), folder / hub.CONFIG_FILE
    problem = settings.get("problem_type")
    if problem not in (None, _SINGLE_LABEL):
        raise CheckpointError(f"{path}: problem_type is {problem!r}; only {_SINGLE_LABEL!r} is supported")
    # transformers leaves out what it takes for granted.
    names = settings.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    try:
        labels = [names[str(number)] for number in range(len(names))]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: id2label does not number the labels from 0 up") from error
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise CheckpointError(f"{path}: id2label takes names, each once")
    return labels


def _stored_dropout(folder: Path) -> float | None:
    """Return the `classifier_dropout` in `folder`, None if there is none. Raises `CheckpointError`."""
    probability = hub.read_settings(folder).get("classifier_dropout")
    is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
    if probability is None or (is_number and 0 <= probability < 1):
        return probability
    raise CheckpointError(
        f"{folder / hub.CONFIG_FILE}: classifier_dropout is {probability!r}; it takes a number from 0 up to, not "
        "including, 1"
    )
