"""`BERTForPreTraining`: BERT with the heads for masked language modelling (MLM) and next-sentence prediction (NSP).

Devlin et al., "BERT: Pre-training of deep bidirectional transformers for language understanding", 2018.
B batch, T length, C width, V vocabulary, S sequences.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from lucid import backend
from lucid.autograd import Tensor
from lucid.kernels.masking import IGNORE_INDEX, Masking, mask_tokens
from lucid.kernels.sequences import Sequences
from lucid.models.bert import hub
from lucid.models.bert.arguments import (
    UNLABELLED,
    check_inputs,
    check_labels,
    check_probabilities,
    check_token_id,
    flags,
    integers,
)
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.heads import HeadLoss, PreTrainingHeads, Reduction, most_probable
from lucid.models.bert.loading import read_model
from lucid.models.bert.model import BERTModel
from lucid.models.bert.stored_weights import StoredWeights
from lucid.models.bert.token_rows import LabelledRows
from lucid.nn import Module, functional, init
from lucid.random import coordinates_by_hand


class ModelInputs(TypedDict, total=False):
    """The inputs of `forward` other than `input_ids`: tensors or arrays."""

    attention_mask: Any
    token_type_ids: Any
    position_ids: Any
    inputs_embeds: Any


class BERTForPreTraining(Module):
    """BERT with MLM and NSP heads.

    Every method takes the inputs of `forward` by name, as tensors or NumPy arrays: `input_ids` [B, T] (integers below
    `vocab_size`) or, in their place, `inputs_embeds` [B, T, C], and optionally `attention_mask` [B, T] (1: attend,
    0: padding), `token_type_ids` [B, T] (0: segment A, 1: segment B) and `position_ids` [T] or [B, T]. A wrong shape,
    dtype or range is a `ValueError` that names the argument, its value and the values it takes.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BERTModel(config)
        self.cls = PreTrainingHeads(config, self.bert.embeddings.word_embeddings.weight)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "BERTForPreTraining":
        """Read a model from a folder with `config.json` and `model.safetensors`, as `transformers` writes them.

        If they lack pooler or heads, these get new weights; if they hold the head of another task, it is left out. A
        warning says so. Raises `CheckpointError`.
        """
        model, weights = cls.read(Path(folder))
        for remark in weights.remarks():
            warnings.warn(remark, stacklevel=2)
        return model

    @classmethod
    def read(cls, folder: Path) -> tuple["BERTForPreTraining", StoredWeights]:
        """Do what `from_pretrained` does, without warnings; also return which parts are missing, and what is left out.

        Raises `CheckpointError`.
        """
        return read_model(folder, cls)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a folder, from which `transformers` can load them.

        Raises `CheckpointError` if they cannot be written.
        """
        hub.write(Path(folder), self.config, self.state_dict())

    def with_vocabulary(self, vocab_size: int) -> "BERTForPreTraining":
        """Return this model with the first `vocab_size` tokens only, or with freshly drawn tokens added."""
        if vocab_size == self.config.vocab_size:
            return self
        with init.without_draws(vocab_size < self.config.vocab_size):
            model = BERTForPreTraining(replace(self.config, vocab_size=vocab_size)).to(self.device)
        own_parameters = dict(self.named_parameters())
        for name, parameter in model.named_parameters():
            own = own_parameters[name]
            rows = min(len(own), len(parameter))
            parameter.data[:rows] = own.data[:rows]
        return model

    def with_tokens(self, pieces: Sequence[Sequence[int]]) -> "BERTForPreTraining":
        """Return this model with one more token for each of `pieces`, the ids of the tokens that have stood for it.

        Its row of the embedding, which the MLM head shares, and its bias are the means of theirs (Gee et al., "Fast
        vocabulary transfer for language model compression", 2022). Without pieces it is freshly drawn.
        """
        first = self.config.vocab_size
        with init.without_draws(all(pieces)):
            model = self.with_vocabulary(first + len(pieces))
        for parameter in (model.bert.embeddings.word_embeddings.weight, model.cls.predictions.bias):
            for row, ids in enumerate(pieces, start=first):
                if ids:
                    parameter.data[row] = parameter.data[list(ids)].mean(axis=0)
        return model

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (prediction_scores [B, T, V], seq_relationship_scores [B, 2]), before softmax."""
        grid = check_inputs(
            self.config, self.device, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        rows = grid.token_rows(grid.all_slots()).on(self.device)
        hidden = self.bert.encode(rows)
        scores = self.cls.predictions(hidden).reshape(*grid.shape, self.config.vocab_size)
        return scores, self._next_sentence_scores(hidden, rows.sequences)

    def get_mlm_loss(
        self,
        mlm_labels: Any,
        input_ids: Any = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
        **inputs: Unpack[ModelInputs],
    ) -> Tensor:
        """Return the cross-entropy (nats) of the true tokens at the positions whose label is not `ignore_index`.

        `mlm_labels` [B, T] holds token ids. The mean is over the positions that count; 0 if there are none.
        """
        mlm, _ = self.losses(self._labelled_rows(input_ids, inputs, mlm_labels=mlm_labels, ignore_index=ignore_index))
        return mlm.reduced(reduction)

    def get_nsp_loss(
        self, nsp_labels: Any, input_ids: Any = None, *, reduction: Reduction = "mean", **inputs: Unpack[ModelInputs]
    ) -> Tensor:
        """Return the cross-entropy (nats) of `nsp_labels` [B]: 0 where segment B follows A, 1 where it does not.

        A label of -100 does not count.
        """
        _, nsp = self.losses(self._labelled_rows(input_ids, inputs, nsp_labels=nsp_labels))
        return nsp.reduced(reduction)

    def get_loss(
        self,
        mlm_labels: Any,
        nsp_labels: Any,
        input_ids: Any = None,
        *,
        mlm_weight: float = 1.0,
        nsp_weight: float = 1.0,
        ignore_index: int = IGNORE_INDEX,
        reduction: Reduction = "mean",
        **inputs: Unpack[ModelInputs],
    ) -> Tensor:
        """Return mlm_weight x MLM loss + nsp_weight x NSP loss, each reduced on its own, from one forward pass."""
        mlm, nsp = self.losses(self._labelled_rows(input_ids, inputs, mlm_labels, nsp_labels, ignore_index))
        return mlm.reduced(reduction) * mlm_weight + nsp.reduced(reduction) * nsp_weight

    def losses(self, rows: LabelledRows) -> tuple[HeadLoss, HeadLoss]:
        """Return the losses of both heads, (MLM, NSP), on rows on the model's device. The host does not wait for a GPU.

        Only labelled positions are scored, because the scores of the vocabulary are the widest array of the model.
        """
        hidden = self.bert.encode(rows)
        # An embedding look-up, because its gradient is a kernel, ten times as fast as the gradient of an index.
        masked = functional.embedding(rows.positions, hidden)
        scores, vocabulary = self.cls.predictions.padded(masked), self.config.vocab_size
        mlm = HeadLoss.of(scores, rows.mlm_labels, rows.masked, ignore_index=rows.ignore_index, vocabulary=vocabulary)
        return mlm, HeadLoss.of(self._next_sentence_scores(hidden, rows.sequences), rows.nsp_labels, rows.pairs)

    def create_masked_lm_inputs(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        special_tokens_mask: Any = None,
        mask_token_id: int = 103,
        mlm_probability: float = 0.15,
        mask_replace_prob: float = 0.8,
        random_replace_prob: float = 0.1,
        ignore_index: int = IGNORE_INDEX,
    ) -> tuple[Tensor, Tensor]:
        """Return (masked_input_ids, mlm_labels), integers [B, T], drawn from `lucid.manual_seed`.

        In each row the fraction `mlm_probability` of the tokens is chosen, and at least one unless it is 0. Of the
        chosen tokens the fraction `mask_replace_prob` becomes `mask_token_id`, the fraction `random_replace_prob`
        becomes random ids of the vocabulary, and the rest stay. Padding (id `pad_token_id`, or 0 in `attention_mask`)
        and special tokens (1 in `special_tokens_mask`) are never chosen. Labels hold the original ids of chosen tokens
        and `ignore_index` elsewhere.
        """
        vocab_size = self.config.vocab_size
        check_probabilities(mlm_probability, mask_replace_prob, random_replace_prob)
        check_token_id("mask_token_id", mask_token_id, vocab_size)
        if 0 <= ignore_index < vocab_size:
            raise ValueError(f"ignore_index is {ignore_index}, which is the id of a token; it takes any other number")
        # In int64, because ignore_index or mask_token_id may not fit into the dtype of the tokens, such as uint8.
        ids = integers("input_ids", input_ids, (None, None), vocab_size, "vocab_size").astype(np.int64)
        text = ids != self.config.pad_token_id
        if attention_mask is not None:
            text &= flags("attention_mask", attention_mask, ids.shape)
        candidates = text
        if special_tokens_mask is not None:
            candidates = text & ~flags("special_tokens_mask", special_tokens_mask, ids.shape)
        masking = Masking(
            mask_token_id=mask_token_id,
            vocab_size=vocab_size,
            max_predictions=ids.shape[1],
            probability=mlm_probability,
            replace_probability=mask_replace_prob,
            random_probability=random_replace_prob,
            ignore_index=ignore_index,
        )
        coordinates = coordinates_by_hand(len(ids))
        masked, labels = mask_tokens(ids, candidates, text.sum(axis=1), masking, coordinates)
        return Tensor(backend.to_device(masked, self.device)), Tensor(backend.to_device(labels, self.device))

    def predict_mlm_token_ids(self, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> Tensor:
        """Return the most probable token at each position: integers [B, T]. Dropout is off."""
        with self.evaluating():
            scores, _ = self(input_ids, **inputs)
        return Tensor(most_probable(scores))

    def predict_nsp_labels(self, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> Tensor:
        """Return 0 (segment B follows A) or 1 (it does not) for each row: integers [B]. Dropout is off."""
        grid = check_inputs(self.config, self.device, input_ids, **inputs)
        rows = grid.token_rows(grid.without_padding()).on(self.device)
        with self.evaluating():
            scores = self._next_sentence_scores(self.bert.encode(rows), rows.sequences)
        return Tensor(most_probable(scores))

    def get_mlm_accuracy(
        self, mlm_labels: Any, input_ids: Any = None, *, ignore_index: int = IGNORE_INDEX, **inputs: Unpack[ModelInputs]
    ) -> Tensor:
        """Return the fraction of the labelled positions whose most probable token is the label. Dropout is off."""
        rows = self._labelled_rows(input_ids, inputs, mlm_labels=mlm_labels, ignore_index=ignore_index)
        with self.evaluating():
            return self.losses(rows)[0].accuracy()

    def get_nsp_accuracy(self, nsp_labels: Any, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> Tensor:
        """Return the fraction of the labelled rows whose next-sentence label is predicted. Dropout is off."""
        rows = self._labelled_rows(input_ids, inputs, nsp_labels=nsp_labels)
        with self.evaluating():
            return self.losses(rows)[1].accuracy()

    def get_accuracy(
        self,
        mlm_labels: Any,
        nsp_labels: Any,
        input_ids: Any = None,
        *,
        mlm_weight: float = 1.0,
        nsp_weight: float = 1.0,
        ignore_index: int = IGNORE_INDEX,
        **inputs: Unpack[ModelInputs],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (MLM accuracy, NSP accuracy, their weighted mean) from one forward pass. Dropout is off."""
        if mlm_weight < 0 or nsp_weight < 0 or mlm_weight + nsp_weight == 0:
            raise ValueError(f"mlm_weight is {mlm_weight} and nsp_weight {nsp_weight}; they take a positive sum")
        rows = self._labelled_rows(input_ids, inputs, mlm_labels, nsp_labels, ignore_index)
        with self.evaluating():
            mlm, nsp = self.losses(rows)
        weighted = (mlm.accuracy() * mlm_weight + nsp.accuracy() * nsp_weight) / (mlm_weight + nsp_weight)
        return mlm.accuracy(), nsp.accuracy(), weighted

    def _labelled_rows(
        self,
        input_ids: Any,
        inputs: ModelInputs,
        mlm_labels: Any = UNLABELLED,
        nsp_labels: Any = UNLABELLED,
        ignore_index: int = IGNORE_INDEX,
    ) -> LabelledRows:
        """Return the checked arguments of a public method as `losses` takes them: on the model's device."""
        grid = check_inputs(self.config, self.device, input_ids, **inputs)
        mlm, nsp = check_labels(grid, mlm_labels, nsp_labels, self.config.vocab_size, ignore_index)
        sequences = grid.without_padding(mlm != ignore_index)
        return grid.token_rows(sequences).labelled(mlm, nsp, ignore_index).on(self.device)

    def _next_sentence_scores(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        return self.cls.seq_relationship(self.bert.pooler(hidden, sequences))
