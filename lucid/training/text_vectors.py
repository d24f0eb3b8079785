"""Vectors of texts: the last hidden states of a model, pooled. Ranks share the work.

A batch holds as many texts as a fixed number of characters allows, whatever the number of ranks, so that any number of
ranks computes the same bits. Texts need not be sorted by length, because token rows have no padding.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from tokenizers import Encoding, Tokenizer

from lucid.distributed import Communicator
from lucid.kernels.sequences import Sequences
from lucid.models import BERTModel
from lucid.models.bert.pooling import Pooling, pooled
from lucid.models.bert.token_rows import TokenRows

# A text, or a pair of texts.
Text: TypeAlias = str | tuple[str, str]

# Characters of a batch: at most as many tokens, and about a quarter in languages with an alphabet. On a CPU larger
# batches would gain little.
_CHARACTERS = 8192
# For each token that is asked for of a text: how many of its characters count in a batch, and how many are encoded at
# first. More are encoded if these have too few tokens.
_COUNTED_PER_TOKEN, _ENCODED_PER_TOKEN = 4, 16
# Special tokens of a pair.
_SPECIAL = 3


class TextTokenizer:
    """Makes token ids of texts as transformers does: with [CLS] and [SEP], and cut to `longest` tokens."""

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        self._tokenizer, self.longest = tokenizer, longest
        # Of a pair, tokens of the longer text are cut off first.
        tokenizer.enable_truncation(longest)

    def encode(self, texts: Sequence[Text]) -> list[Encoding]:
        """Return the tokens of each text."""
        size = _ENCODED_PER_TOKEN * self.longest
        parts = [_beginning(text, size) for text in texts]
        found = self._tokenizer.encode_batch_fast(parts)
        for number, (text, part) in enumerate(zip(texts, parts, strict=True)):
            if part is not text and not found[number].overflowing:
                found[number] = self._tokenizer.encode(text)
        return found

    def to_str(self) -> str:
        """Return the tokenizer and its settings as JSON."""
        return self._tokenizer.to_str()


def _beginning(text: Text, size: int) -> Text:
    """Return at most `size` characters of a long text, up to a space; all of a pair or of a text without spaces.

    BERT's normalisation and its splitting into words never look across a space, so the tokens of the beginning begin
    those of the text.
    """
    if isinstance(text, tuple) or len(text) <= size:
        return text
    end = max(text.rfind(" ", 0, size), text.rfind("\n", 0, size))
    return text if end < 0 else text[:end]


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Texts that are computed together."""

    texts: Sequence[Text]
    tokenizer: TextTokenizer

    @cached_property
    def _encodings(self) -> list[Encoding]:
        return self.tokenizer.encode(self.texts)

    @cached_property
    def rows(self) -> TokenRows:
        """The token rows of the texts, in host memory."""
        lengths = np.array([len(encoding.ids) for encoding in self._encodings])
        filled = np.arange(lengths.max()) < lengths[:, None]
        ids, types = np.zeros((2, *filled.shape), np.int64)
        ids[filled] = np.concatenate([encoding.ids for encoding in self._encodings])
        types[filled] = np.concatenate([encoding.type_ids for encoding in self._encodings])
        return TokenRows.of_grid(Sequences.unpadded(filled, filled), ids, types)

    @property
    def cut(self) -> int:
        """The number of texts with more tokens than the longest, of those that this rank has computed."""
        encodings = vars(self).get("_encodings", [])
        return sum(bool(encoding.overflowing) for encoding in encodings)


def batches_of(texts: Iterable[Text], tokenizer: TextTokenizer) -> Iterator[TextBatch]:
    """Yield batches of the texts, in their order."""
    most = _COUNTED_PER_TOKEN * tokenizer.longest
    batch: list[Text] = []
    characters = 0
    for text in texts:
        size = min((len(text) if isinstance(text, str) else sum(map(len, text))) + _SPECIAL, most)
        if batch and characters + size > _CHARACTERS:
            yield TextBatch(batch, tokenizer)
            batch, characters = [], 0
        batch.append(text)
        characters += size
    if batch:
        yield TextBatch(batch, tokenizer)


def text_vectors(
    model: BERTModel, batches: Sequence[TextBatch], communicator: Communicator, pooling: Pooling
) -> np.ndarray:
    """Return the vectors of all texts of `batches`, in host memory: float32 [texts, C].

    All ranks call this with the same batches, and get the same vectors. Dropout is off.
    """
    rank, size = communicator.rank, communicator.size
    bounds = [0, *accumulate(len(batch.texts) for batch in batches)]
    shares = [part * len(batches) // size for part in range(size + 1)]
    vectors = np.zeros((bounds[-1], model.config.hidden_size), np.float32)
    with model.evaluating():
        for number in range(shares[rank], shares[rank + 1]):
            rows = batches[number].rows.on(model.device)
            vectors[bounds[number] : bounds[number + 1]] = pooled(model.encode(rows).data, rows.sequences, pooling)
    width = model.config.hidden_size
    communicator.all_gather(vectors.reshape(-1), [bounds[share] * width for share in shares]).wait()
    return vectors
