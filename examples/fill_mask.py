"""Fills [MASK] in a sentence, by any BERT in a folder of transformers' format with its tokenizer.

python examples/fill_mask.py runs/by_hand/model "the [MASK] of a list."
"""

import argparse
from pathlib import Path

import numpy as np

import lucid
from lucid import data, models


def main(folder: Path, text: str) -> None:
    tokenizer = data.load_tokenizer(folder)
    model = models.BERTForPreTraining.from_pretrained(folder).eval()
    ids = np.array(tokenizer.encode(text).ids)
    with lucid.no_grad():
        scores, _ = model(ids[None])
    for position in np.flatnonzero(ids == data.special_tokens(tokenizer).mask):
        probabilities = scores[0, int(position)].softmax().numpy()
        best = probabilities.argsort()[::-1][:5]
        print(", ".join(f"{tokenizer.id_to_token(token)} {probabilities[token]:.1%}" for token in best))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the five most probable words for each [MASK] of a text.")
    parser.add_argument("model", type=Path, help="folder of a model with its tokenizer")
    parser.add_argument("text", help="text with [MASK]")
    arguments = parser.parse_args()
    main(arguments.model, arguments.text)
