"""What benchmarks train: models of two sizes, on a made-up batch."""

import numpy as np

from lucid.models import BERTConfig

SIZES = {
    "small": {"vocab_size": 4096, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 512},
    "base": {},
}  # fmt: skip


def make_batch(config: BERTConfig, rows: int, length: int) -> dict[str, np.ndarray]:
    """Return a batch without padding, 15% masked: integers [rows, length], and `nsp_labels` [rows]."""
    generator = np.random.default_rng(0)
    ids = generator.integers(5, config.vocab_size, (rows, length))
    masked = generator.random((rows, length)) < 0.15
    return {
        "input_ids": np.where(masked, 4, ids),
        "mlm_labels": np.where(masked, ids, -100),
        "nsp_labels": generator.integers(0, 2, rows),
        "token_type_ids": (np.arange(length) >= length // 2).astype(np.int64) + np.zeros((rows, 1), np.int64),
    }
