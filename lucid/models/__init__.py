"""Models: BERT for pretraining, without heads, and with a head for labels; their configuration, and published sizes."""

from typing import TYPE_CHECKING

from lucid.errors import no_such_name
from lucid.models.bert.classification import BERTForSequenceClassification, BERTForTokenClassification
from lucid.models.bert.config import BERTConfig
from lucid.models.bert.model import BERTModel
from lucid.models.bert.pretraining import BERTForPreTraining
from lucid.models.bert.zoo import bert_for_pre_training_base, bert_for_pre_training_large

__all__ = [
    "BERTConfig",
    "BERTForPreTraining",
    "BERTForSequenceClassification",
    "BERTForTokenClassification",
    "BERTModel",
    "bert_for_pre_training_base",
    "bert_for_pre_training_large",
]

if not TYPE_CHECKING:  # to mypy every name would be there

    def __getattr__(name):
        raise no_such_name(__name__, name, __all__)
