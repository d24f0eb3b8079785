"""Models: BERT for pretraining, BERT without heads, their configuration, and the published sizes."""

from lucid.models.bert.config import BERTConfig
from lucid.models.bert.model import BERTModel
from lucid.models.bert.pretraining import BERTForPreTraining
from lucid.models.bert.zoo import bert_for_pre_training_base, bert_for_pre_training_large

__all__ = ["BERTConfig", "BERTForPreTraining", "BERTModel", "bert_for_pre_training_base", "bert_for_pre_training_large"]
