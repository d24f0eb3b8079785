"""Models: BERT for pretraining, its configuration, and its published sizes."""

from lucid.models.bert.config import BERTConfig
from lucid.models.bert.pretraining import BERTForPreTraining
from lucid.models.bert.zoo import bert_for_pre_training_base, bert_for_pre_training_large

__all__ = ["BERTConfig", "BERTForPreTraining", "bert_for_pre_training_base", "bert_for_pre_training_large"]
