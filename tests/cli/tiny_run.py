"""The settings of the run that the tests of commands share, without its paths."""

RUN = {
    "model": {
        "vocab_size": 208,  # eight more than the tokenizer has: padding, cut on export
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
    },
    "optimizer": {"learning_rate": 3.0e-3},
    "train": {"steps": 6, "global_batch": 4, "log_every": 2, "evaluate_every": 3, "evaluation_samples": 8},
}
