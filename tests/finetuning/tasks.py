"""Small tasks that a tiny BERT learns in a few steps, and the model for them."""

import numpy as np

from lucid.data.tokenizer import bert_tokenizer
from lucid.models import BERTConfig

WORDS = ["one", "two", "three", "four", "five", "red", "green", "blue", "grey", "pink"]
NUMBERS, COLOURS = WORDS[:5], WORDS[5:]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
TINY = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}


def tiny_config(**changes):
    return BERTConfig(**{**TINY, **changes})


def tiny_tokenizer():
    return bert_tokenizer({token: number for number, token in enumerate(TOKENS)})


def sentences(count, seed=0):
    """Lists of words: numbers and colours, mostly of one kind."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        kinds = (NUMBERS, COLOURS) if number % 2 else (COLOURS, NUMBERS)
        length = int(generator.integers(2, 8))
        found.append([str(generator.choice(kinds[int(generator.random() < 0.2)])) for _ in range(length)])
    return found


def label_of(words):
    """The label of a text: which kind of word begins it."""
    return "number" if words[0] in NUMBERS else "colour"


def write_texts(path, count, seed=0):
    """A .tsv of texts and labels."""
    rows = [f"{' '.join(words)}\t{label_of(words)}" for words in sentences(count, seed)]
    path.write_text("".join(f"{row}\n" for row in ["text\tlabel", *rows]))
    return path


def write_words(path, count, seed=0):
    """A file of columns whose entities are runs of numbers."""
    blocks = []
    for words in sentences(count, seed):
        lines, before = [], "O"
        for word in words:
            label = "O" if word in COLOURS else "B-N" if before == "O" else "I-N"
            lines.append(f"{word} x {label}")
            before = label
        blocks.append("\n".join(lines))
    path.write_text("\n\n".join(blocks) + "\n")
    return path
