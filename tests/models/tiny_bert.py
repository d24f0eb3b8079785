"""The model that the tests of this folder share: its configuration, its special tokens, the size of a batch."""

from lucid import models

B, T, V = 4, 12, 120
MASK, CLS, SEP, PAD = 103, 101, 102, 0
IGNORED = -100
CONFIG = models.BERTConfig(
    vocab_size=V,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
)
