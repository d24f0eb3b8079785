"""The data room: what a prepared corpus is, and how batches are made of it.

`Corpus` opens the shards that `lucid.preparation` wrote; a `Sampler` makes batches of them, each a pure function of
the seed and its place in the run; a `Loader` computes batches ahead.
"""

from lucid.data.batch import Batch
from lucid.data.loader import Loader
from lucid.data.manifest import HELD_OUT, TRAIN, Manifest
from lucid.data.sampler import Sampler, SamplerSettings
from lucid.data.shards import Corpus
from lucid.data.tokenizer import SpecialTokens, load_tokenizer, special_tokens, tokenizer_hash

__all__ = [
    "HELD_OUT",
    "TRAIN",
    "Batch",
    "Corpus",
    "Loader",
    "Manifest",
    "Sampler",
    "SamplerSettings",
    "SpecialTokens",
    "load_tokenizer",
    "special_tokens",
    "tokenizer_hash",
]
