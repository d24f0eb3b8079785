"""The data room: from text to batches.

`prepare` reads documents, trains or loads a tokenizer and writes shards; `Corpus` opens them; a `Sampler` makes
batches of them, each a pure function of the seed and its place in the run; a `Loader` computes batches ahead.
"""

from lucid.data.batch import IGNORED, Batch
from lucid.data.documents import Document, read_documents
from lucid.data.loader import Loader
from lucid.data.manifest import HELD_OUT, TRAIN, Manifest
from lucid.data.prepare import prepare
from lucid.data.sampler import Sampler, SamplerSettings
from lucid.data.shards import Corpus
from lucid.data.sources import PYTHON_DOCS
from lucid.data.tokenizer import SpecialTokens, load_tokenizer, special_tokens, tokenizer_hash

__all__ = [
    "HELD_OUT",
    "IGNORED",
    "PYTHON_DOCS",
    "TRAIN",
    "Batch",
    "Corpus",
    "Document",
    "Loader",
    "Manifest",
    "Sampler",
    "SamplerSettings",
    "SpecialTokens",
    "load_tokenizer",
    "prepare",
    "read_documents",
    "special_tokens",
    "tokenizer_hash",
]
