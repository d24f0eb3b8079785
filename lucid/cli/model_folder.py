"""Loads the model of a folder together with its tokenizer."""

from pathlib import Path

from tokenizers import Tokenizer

from lucid.data import load_tokenizer
from lucid.errors import ConfigError
from lucid.models import BERTForPreTraining


def load_model(folder: Path) -> tuple[BERTForPreTraining, Tokenizer]:
    """Return the model and the tokenizer in `folder`. Raises `ConfigError` if they do not fit together."""
    tokenizer, model = load_tokenizer(folder), BERTForPreTraining.from_pretrained(folder)
    known, tokens = model.config.vocab_size, tokenizer.get_vocab_size()
    if known < tokens:
        raise ConfigError(
            f"the model in {folder} knows {known:,} tokens, but the tokenizer there has {tokens:,}: put the "
            "model's own tokenizer there"
        )
    return model, tokenizer
