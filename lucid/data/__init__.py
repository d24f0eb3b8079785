"""Prepared corpora, and the batches that training makes of them.

A `Corpus` opens the shards that `lucid.preparation` wrote. A `Sampler` makes batches of a corpus, each of them a pure
function of the seed and of its position in the run. A `Mixture` makes them of several corpora, by their weights. A
`Loader` computes batches ahead.
"""

from lucid.data.batch import Batch
from lucid.data.loader import Loader
from lucid.data.manifest import HELD_OUT, TRAIN, Manifest
from lucid.data.mixture import Mixture
from lucid.data.sampler import Sampler, SamplerSettings
from lucid.data.shards import Corpus
from lucid.data.tokenizer import SpecialTokens, load_tokenizer, save_tokenizer, special_tokens, tokenizer_hash

__all__ = [
    "HELD_OUT",
    "TRAIN",
    "Batch",
    "Corpus",
    "Loader",
    "Manifest",
    "Mixture",
    "Sampler",
    "SamplerSettings",
    "SpecialTokens",
    "load_tokenizer",
    "save_tokenizer",
    "special_tokens",
    "tokenizer_hash",
]
