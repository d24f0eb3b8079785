"""The model in a folder that a command was given, and its tokenizer."""

from pathlib import Path

from tokenizers import Tokenizer

from lucid.data import load_tokenizer
from lucid.errors import ConfigError
from lucid.models import BERTForPreTraining


def load_model(folder: Path) -> tuple[BERTForPreTraining, Tokenizer]:
    """Return the model in `folder`, and the tokenizer beside it. Raises `ConfigError` if they do not fit together."""
    tokenizer, model = load_tokenizer(folder), BERTForPreTraining.from_pretrained(folder)
    known, tokens = model.config.vocab_size, tokenizer.get_vocab_size()
    if known < tokens:
        raise ConfigError(
            f"the model in {folder} knows {known:,} tokens, but the tokenizer beside it has {tokens:,}: put the "
            "model's own tokenizer there"
        )
    return model, tokenizer
