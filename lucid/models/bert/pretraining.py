"""`BERTForPreTraining`: BERT with the heads for masked language modelling (MLM) and next-sentence prediction (NSP).

Devlin et al., "BERT: Pre-training of deep bidirectional transformers for language understanding", 2018.
B batch, T length, C width, V vocabulary, M masked positions.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from lucid import backend, kernels, random
from lucid.autograd import Tensor
from lucid.backend import Array
from lucid.kernels.masking import IGNORE_INDEX, Masking, mask_tokens
from lucid.kernels.sequences import Sequences
from lucid.models.bert import hub
from lucid.models.bert.arguments import (
    EncoderInputs,
    check_inputs,
    check_probabilities,
    check_token_id,
    flags,
    integers,
)
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.encoder import BERTModel
from lucid.models.bert.rows import LabelledRows
from lucid.nn import LayerNorm, Linear, Module, Parameter, TiedLinear, functional, init
from lucid.random import coordinates_by_hand

Reduction = Literal["mean", "sum"]

# What the rows of scores are padded to: whole lines of a GPU's cache, whatever their type.
_ROW_MULTIPLE = 64


class ModelInputs(TypedDict, total=False):
    """The inputs of `forward` beside `input_ids`: tensors or arrays."""

    attention_mask: Any
    token_type_ids: Any
    position_ids: Any
    inputs_embeds: Any


class PredictionTransform(Module):
    """A linear map, the activation, and normalisation, before the vocabulary is scored."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, config.initializer_range)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.kind = config.activation

    def forward(self, x: Tensor) -> Tensor:
        product = functional.linear(x, self.dense.weight)
        return self.LayerNorm(functional.activation(product, self.kind, self.dense.bias))


class LanguageModelHead(Module):
    """Scores of the vocabulary [..., V] from hidden states [..., C]; its weight is the word embedding's.

    In training the scores are [N, W], with W - V columns of zeros that do not count: products are slow where rows begin
    just anywhere, as those of the 30,522 do in bfloat16. So `flatten` pads table and bias.
    """

    def __init__(self, config: BERTConfig, word_embedding: Parameter) -> None:
        super().__init__()
        self.transform = PredictionTransform(config)
        self.bias = Parameter(init.zeros(config.vocab_size))
        self.decoder = TiedLinear(word_embedding, self.bias)
        word_embedding.row_multiple = self.bias.row_multiple = _ROW_MULTIPLE

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))

    def padded(self, x: Tensor) -> Tensor:
        """Return the scores [N, W] for hidden states [N, C]; W is V where the parameters are in no flat buffers."""
        return self.decoder.padded(self.transform(x))


class PreTrainingHeads(Module):
    """The two heads, in Hugging Face's names."""

    def __init__(self, config: BERTConfig, word_embedding: Parameter) -> None:
        super().__init__()
        self.predictions = LanguageModelHead(config, word_embedding)
        self.seq_relationship = Linear(config.hidden_size, 2, config.initializer_range)


@dataclass(frozen=True)
class BranchLoss:
    """One head on one batch: the sum of its losses in nats, and how many predictions counted and were right.

    `loss` and `correct`, an integer, have no axes and are where the model is: to read them is to wait for it.
    """

    loss: Tensor
    count: int
    correct: Array

    def accuracy(self) -> Tensor:
        """Return the share that was right, 0 if nothing counted."""
        return Tensor(np.asarray(int(self.correct) / max(1, self.count), dtype=np.float32))


class BERTForPreTraining(Module):
    """BERT with MLM and NSP heads.

    Every method takes the inputs of `forward`, by name, as tensors or NumPy arrays: `input_ids` [B, T] (integers below
    `vocab_size`) or `inputs_embeds` [B, T, C] in their place, and optionally `attention_mask` [B, T] (1: attend,
    0: padding), `token_type_ids` [B, T] (0: segment A, 1: segment B) and `position_ids` [T] or [B, T]. An argument of
    the wrong shape, kind or range is a `ValueError` that names it, what it got and what it takes.
    """

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.bert = BERTModel(config)
        self.cls = PreTrainingHeads(config, self.bert.embeddings.word_embeddings.weight)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "BERTForPreTraining":
        """Read a model from a folder with `config.json` and `model.safetensors`, as `transformers` writes them.

        A checkpoint without pooler or heads gets new ones, with a warning. Raises `CheckpointError`.
        """
        folder = Path(folder)
        config = hub.read_config(folder)
        hub.check_size(folder, config)
        state = random.state()
        with init.undrawn():
            model = cls(config)
        missing = hub.read_weights(folder, model)
        if missing:
            with random.using(state):
                drawn = dict(cls(config).named_parameters())
            for name, parameter in model.named_parameters():
                if name in missing:
                    parameter.data[...] = drawn[name].data
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a folder, from which `transformers` can load them."""
        hub.write(Path(folder), self.config, self.state_dict())

    def with_vocabulary(self, vocab_size: int) -> "BERTForPreTraining":
        """Return this model with only the first `vocab_size` tokens, or with freshly drawn ones added."""
        if vocab_size == self.config.vocab_size:
            return self
        with init.undrawn(vocab_size < self.config.vocab_size):
            model = BERTForPreTraining(replace(self.config, vocab_size=vocab_size))
        kept = min(vocab_size, self.config.vocab_size)
        ours = dict(self.named_parameters())
        for name, parameter in model.named_parameters():
            rows = kept if parameter.shape != ours[name].shape else len(parameter)
            parameter.data[:rows] = ours[name].data[:rows]
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
        inputs = check_inputs(
            self.config, self.device, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds
        )
        rows = inputs.rows(inputs.all_slots()).on(self.device)
        hidden = self.bert(rows)
        scores = self.cls.predictions(hidden).reshape(*inputs.batch_and_length, self.config.vocab_size)
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
        checked = self._check(input_ids, **inputs)
        labels = self._mlm_labels(mlm_labels, checked, ignore_index)
        return _reduce(self._mlm(checked, labels, ignore_index), reduction)

    def get_nsp_loss(
        self, nsp_labels: Any, input_ids: Any = None, *, reduction: Reduction = "mean", **inputs: Unpack[ModelInputs]
    ) -> Tensor:
        """Return the cross-entropy (nats) of `nsp_labels` [B]: 0 where segment B follows A, 1 where it does not.

        A row labelled -100 does not count.
        """
        return _reduce(self._nsp(self._check(input_ids, **inputs), nsp_labels), reduction)

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
        """Return mlm_weight x MLM loss + nsp_weight x NSP loss, each reduced on its own, from one pass."""
        mlm, nsp = self.branch_losses(mlm_labels, nsp_labels, input_ids, ignore_index=ignore_index, **inputs)
        return _reduce(mlm, reduction) * mlm_weight + _reduce(nsp, reduction) * nsp_weight

    def branch_losses(
        self,
        mlm_labels: Any,
        nsp_labels: Any,
        input_ids: Any = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        sequence_ids: Any = None,
        **inputs: Unpack[ModelInputs],
    ) -> tuple[BranchLoss, BranchLoss]:
        """Return what `get_loss` is made of, (MLM, NSP), with the counts that training and evaluation report.

        With `sequence_ids` [B, T] a row holds several sequences: it is 1 in the slots of its first, 2 in those of the
        next, 0 in padding, and takes the place of `attention_mask`. A sequence attends to itself alone, its positions
        count from 0, and `nsp_labels` [S] has a label for each sequence, row after row. Labels in padding do not count.
        """
        rows = self.labelled_rows(
            mlm_labels, nsp_labels, input_ids, ignore_index=ignore_index, sequence_ids=sequence_ids, **inputs
        )
        return self.losses(rows.on(self.device))

    def labelled_rows(
        self,
        mlm_labels: Any,
        nsp_labels: Any,
        input_ids: Any = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        sequence_ids: Any = None,
        **inputs: Unpack[ModelInputs],
    ) -> LabelledRows:
        """Return what `losses` takes, in host memory, of the arguments of `branch_losses`. May run in a thread."""
        checked = check_inputs(self.config, self.device, input_ids, sequence_ids=sequence_ids, **inputs)
        labels = self._mlm_labels(mlm_labels, checked, ignore_index)
        sequences = checked.without_padding(labels != ignore_index)
        return self._labelled(checked, sequences, labels, self._nsp_labels(nsp_labels, sequences), ignore_index)

    def losses(self, rows: LabelledRows) -> tuple[BranchLoss, BranchLoss]:
        """Return the losses (MLM, NSP) of rows on the model's device. On a GPU the host waits for nothing in here."""
        hidden = self.bert(rows.rows)
        return self._mlm_branch(hidden, rows), self._nsp_branch(hidden, rows)

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

        In each row a share `mlm_probability` of the tokens is chosen, one at least unless it is 0; of these
        `mask_replace_prob` become `mask_token_id`, `random_replace_prob` any id of the vocabulary, the rest stay.
        Padding (id `pad_token_id`, or 0 in `attention_mask`) and special tokens (1 in `special_tokens_mask`) are never
        chosen. Labels hold the original id where chosen, `ignore_index` elsewhere.
        """
        vocab_size = self.config.vocab_size
        check_probabilities(mlm_probability, mask_replace_prob, random_replace_prob)
        check_token_id("mask_token_id", mask_token_id, vocab_size)
        if 0 <= ignore_index < vocab_size:
            raise ValueError(f"ignore_index is {ignore_index}, which is a token's id; it takes any other number")
        # Labels and ids go where a token's dtype, such as uint16, has no room for them.
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
        return Tensor(_most_probable(scores))

    def predict_nsp_labels(self, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> Tensor:
        """Return 0 (segment B follows A) or 1 (it does not) for each row: integers [B]. Dropout is off."""
        checked = self._check(input_ids, **inputs)
        rows = checked.rows(checked.without_padding()).on(self.device)
        with self.evaluating():
            scores = self._next_sentence_scores(self.bert(rows), rows.sequences)
        return Tensor(_most_probable(scores))

    def get_mlm_accuracy(
        self, mlm_labels: Any, input_ids: Any = None, *, ignore_index: int = IGNORE_INDEX, **inputs: Unpack[ModelInputs]
    ) -> Tensor:
        """Return the share of the positions that count whose most probable token is the label's. Dropout is off."""
        checked = self._check(input_ids, **inputs)
        labels = self._mlm_labels(mlm_labels, checked, ignore_index)
        with self.evaluating():
            return self._mlm(checked, labels, ignore_index).accuracy()

    def get_nsp_accuracy(self, nsp_labels: Any, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> Tensor:
        """Return the share of rows whose next-sentence label is predicted. Dropout is off."""
        checked = self._check(input_ids, **inputs)
        with self.evaluating():
            return self._nsp(checked, nsp_labels).accuracy()

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
        """Return (MLM accuracy, NSP accuracy, their weighted mean), from one pass. Dropout is off."""
        if mlm_weight < 0 or nsp_weight < 0 or mlm_weight + nsp_weight == 0:
            raise ValueError(f"mlm_weight is {mlm_weight} and nsp_weight {nsp_weight}; they take a positive sum")
        with self.evaluating():
            mlm, nsp = self.branch_losses(mlm_labels, nsp_labels, input_ids, ignore_index=ignore_index, **inputs)
        weighted = (mlm.accuracy() * mlm_weight + nsp.accuracy() * nsp_weight) / (mlm_weight + nsp_weight)
        return mlm.accuracy(), nsp.accuracy(), weighted

    def _check(self, input_ids: Any = None, **inputs: Unpack[ModelInputs]) -> EncoderInputs:
        return check_inputs(self.config, self.device, input_ids, **inputs)

    def _mlm_labels(self, labels: Any, inputs: EncoderInputs, ignore_index: int) -> Array:
        bound, shape = self.config.vocab_size, inputs.batch_and_length
        return integers("mlm_labels", labels, shape, bound, "vocab_size", ignored=ignore_index)

    def _nsp_labels(self, labels: Any, sequences: Sequences) -> Array:
        return integers("nsp_labels", labels, (sequences.count,), 2, ignored=IGNORE_INDEX)

    def _mlm(self, inputs: EncoderInputs, labels: Array, ignore_index: int) -> BranchLoss:
        sequences = inputs.without_padding(labels != ignore_index)
        none = np.full(sequences.count, IGNORE_INDEX)
        rows = self._labelled(inputs, sequences, labels, none, ignore_index).on(self.device)
        return self._mlm_branch(self.bert(rows.rows), rows)

    def _nsp(self, inputs: EncoderInputs, nsp_labels: Any) -> BranchLoss:
        sequences = inputs.without_padding()
        none = np.full(inputs.batch_and_length, IGNORE_INDEX)
        labels = self._nsp_labels(nsp_labels, sequences)
        rows = self._labelled(inputs, sequences, none, labels, IGNORE_INDEX).on(self.device)
        return self._nsp_branch(self.bert(rows.rows), rows)

    @staticmethod
    def _labelled(
        inputs: EncoderInputs, sequences: Sequences, mlm_labels: Array, nsp_labels: Array, ignore_index: int
    ) -> LabelledRows:
        """Choose the masked positions: the vocabulary is the widest thing in the model, and only they are scored."""
        of_rows = sequences.rows_of(mlm_labels)
        positions = np.flatnonzero(of_rows != ignore_index)
        return LabelledRows(
            inputs.rows(sequences),
            positions,
            of_rows[positions].astype(np.int64, copy=False),
            nsp_labels.astype(np.int64, copy=False),
            ignore_index,
            len(positions),
            int(np.count_nonzero(nsp_labels != IGNORE_INDEX)),
        )

    def _mlm_branch(self, hidden: Tensor, rows: LabelledRows) -> BranchLoss:
        # Rows of a table at ids, whose gradient is a kernel: that of an index takes ten times as long.
        masked = functional.embedding(rows.positions, hidden)
        scores = self.cls.predictions.padded(masked)
        return _branch_loss(scores, rows.mlm_labels, rows.ignore_index, rows.masked, self.config.vocab_size)

    def _nsp_branch(self, hidden: Tensor, rows: LabelledRows) -> BranchLoss:
        scores = self._next_sentence_scores(hidden, rows.rows.sequences)
        return _branch_loss(scores, rows.nsp_labels, IGNORE_INDEX, rows.pairs)

    def _next_sentence_scores(self, hidden: Tensor, sequences: Sequences) -> Tensor:
        return self.cls.seq_relationship(self.bert.pooler(hidden, sequences))


def _branch_loss(
    scores: Tensor, labels: Array, ignore_index: int, count: int, vocabulary: int | None = None
) -> BranchLoss:
    loss = functional.cross_entropy(scores, labels, ignore_index, reduction="sum", vocabulary=vocabulary)
    right = (_most_probable(scores, vocabulary) == labels) & (labels != ignore_index)
    return BranchLoss(loss, count, right.sum())


def _most_probable(scores: Tensor, vocabulary: int | None = None) -> Array:
    """Return the place of the greatest of scores [..., V]: int64 [...]. With `vocabulary` they may be padded."""
    return kernels.of(scores.data).argmax(scores.data, vocabulary)


def _reduce(branch: BranchLoss, reduction: Reduction) -> Tensor:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}; it takes 'mean' or 'sum'")
    return branch.loss if reduction == "sum" else branch.loss * (1.0 / max(1, branch.count))
