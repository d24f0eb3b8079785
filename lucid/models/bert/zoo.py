"""The published sizes (Devlin et al., 2018), with fresh weights."""

from typing import Any

from lucid.models.bert.config import BERTConfig
from lucid.models.bert.pretraining import BERTForPreTraining

# The shape of BERT-large. BERT-base has the defaults of `BERTConfig`.
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}


def bert_for_pre_training_base(**settings: Any) -> BERTForPreTraining:
    """Return BERT-base, uncased: 12 layers of width 768, 12 heads, 110,106,428 parameters.

    `settings` override fields of its config.
    """
    return BERTForPreTraining(BERTConfig(**settings))


def bert_for_pre_training_large(**settings: Any) -> BERTForPreTraining:
    """Return BERT-large, uncased: 24 layers of width 1024, 16 heads, 336,226,108 parameters.

    `settings` override fields of its config.
    """
    return BERTForPreTraining(BERTConfig(**{**LARGE, **settings}))
