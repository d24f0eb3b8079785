"""Loads and saves the WordPiece tokenizer, in the files that Hugging Face's BERT reads."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lucid.backend import Array
from lucid.errors import DataError
from lucid.files import open_text, reason_of, written_aside
from lucid.json_values import parse_json

# The files that `save_tokenizer` writes, in this order.
TOKENIZER_FILES = "tokenizer.json", "vocab.txt", "tokenizer_config.json"
LARGEST_VOCABULARY = 1 << 20
# Bytes of one of these files: a vocabulary of the largest size has about half as many.
_LARGEST_FILE = 1 << 26
# Pieces of a word begin with this in every BERT; masking and decoding rely on it.
_CONTINUING = "##"
# Characters: longer words are unknown; BERT's limit is 100. The time of a word grows with the cube of its length.
_LONGEST_WORD = 1000


@dataclass(frozen=True)
class SpecialTokens:
    """The ids of the five tokens that are not text."""

    pad: int
    unknown: int
    classify: int
    separator: int
    mask: int

    @property
    def ids(self) -> tuple[int, ...]:
        """All five ids, in the order of the fields."""
        return self.pad, self.unknown, self.classify, self.separator, self.mask


SPECIAL_TEXTS = {"pad": "[PAD]", "unknown": "[UNK]", "classify": "[CLS]", "separator": "[SEP]", "mask": "[MASK]"}


def special_tokens(tokenizer: Tokenizer, name: str = "the tokenizer") -> SpecialTokens:
    """Return the ids of the special tokens. Raises `DataError`, which calls the tokenizer `name`, if one is missing."""
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in SPECIAL_TEXTS.values() if text not in vocabulary]
    if missing:
        raise DataError(f"{name} has no {', '.join(missing)}: BERT needs {', '.join(SPECIAL_TEXTS.values())}")
    return SpecialTokens(**{name: vocabulary[text] for name, text in SPECIAL_TEXTS.items()})


def bert_tokenizer(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    """Return the tokenizer of a BERT with this vocabulary. Raises `DataError` if a special token is missing."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TEXTS["unknown"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = special_tokens(tokenizer)
    tokenizer.add_special_tokens(list(SPECIAL_TEXTS.values()))
    return _framed(tokenizer, special)


def _framed(tokenizer: Tokenizer, special: SpecialTokens) -> Tokenizer:
    """Make `tokenizer` put [CLS] and [SEP] around texts, and join word pieces when it decodes."""
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(
        (SPECIAL_TEXTS["separator"], special.separator), (SPECIAL_TEXTS["classify"], special.classify)
    )
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a WordPiece tokenizer from `tokenizer.json`, or from `vocab.txt` and, if present, `tokenizer_config.json`.

    Both lucid and Hugging Face's BERT write such folders. Raises `DataError` if the folder holds no such tokenizer.
    """
    if (folder / "tokenizer.json").exists():
        tokenizer = _parsed(folder / "tokenizer.json", _of_bert)
    elif (folder / "vocab.txt").exists():
        config = folder / "tokenizer_config.json"
        lowercase = _parsed(config, _lowercase) if config.exists() else True
        tokenizer = _parsed(folder / "vocab.txt", lambda text: bert_tokenizer(_vocabulary(text), lowercase))
    else:
        raise DataError(f"{folder} holds no tokenizer: expected tokenizer.json or vocab.txt in it")
    return _checked(tokenizer, folder)


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
        with open_text(path) as file:
            return parse(file.read())
    except Exception as error:  # `tokenizers` raises plain Exception on what it cannot read
        raise DataError(f"{path} cannot be read as a part of a tokenizer: {reason_of(error)}") from error


def _vocabulary(text: str) -> dict[str, int]:
    """Return the ids of the tokens of a `vocab.txt`. Raises `ValueError` if one stands there twice."""
    lines = text.rstrip("\n").split("\n")
    _check_size(len(lines))
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(lines):
        if vocabulary.setdefault(token, number) != number:
            raise ValueError(f"line {number + 1} is {token!r}, as line {vocabulary[token] + 1} is: remove one of them")
    return vocabulary


def _check_size(tokens: int) -> None:
    if tokens > LARGEST_VOCABULARY:
        raise ValueError(f"it has {tokens:,} tokens, and a vocabulary may have {LARGEST_VOCABULARY:,}")


# The components that a `tokenizer.json` may have. The library has more, some of which run any regular expression or
# panic on nonsensical settings.
_PARTS_OF_BERT = {
    "model": ("WordPiece",),
    "normalizer": (None, "BertNormalizer"),
    "pre_tokenizer": ("BertPreTokenizer",),
}


def _of_bert(text: str) -> Tokenizer:
    """Return the tokenizer that a `tokenizer.json` describes. Raises `ValueError` if it is not a BERT's."""
    content = parse_json(text)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError("it describes no tokenizer")
    # Old files lack the type of the model.
    content["model"].setdefault("type", "WordPiece")
    for part, supported in _PARTS_OF_BERT.items():
        settings = content.get(part)
        kind = settings.get("type") if isinstance(settings, dict) else settings
        if kind not in supported:
            raise ValueError(f"its {part} is {kind!r}; BERT's is {supported[-1]}")
    _check_model(content["model"])
    absent = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    return Tokenizer.from_str(json.dumps({**content, **absent}))


def _check_model(model: dict[str, Any]) -> None:
    """Raise `ValueError` unless the settings of a WordPiece model are a BERT's, and encode any text soon."""
    for name, expected in (("unk_token", SPECIAL_TEXTS["unknown"]), ("continuing_subword_prefix", _CONTINUING)):
        if model.get(name) != expected:
            raise ValueError(f"its {name} is {model.get(name)!r}; BERT's is {expected!r}")
    longest = model.get("max_input_chars_per_word")
    if type(longest) is not int or not 1 <= longest <= _LONGEST_WORD:
        raise ValueError(f"its max_input_chars_per_word is {longest!r}; BERT's is 100, and {_LONGEST_WORD:,} the most")
    if isinstance(model.get("vocab"), dict):
        _check_size(len(model["vocab"]))


def _lowercase(text: str) -> bool:
    """Return whether a `tokenizer_config.json` asks for lower case."""
    settings = parse_json(text)
    lowercase = settings.get("do_lower_case", True) if isinstance(settings, dict) else None
    if not isinstance(lowercase, bool):
        raise ValueError("do_lower_case has to be true or false")
    return lowercase


def _checked(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    special = special_tokens(tokenizer, f"the tokenizer in {folder}")
    if tokenizer.get_vocab_size(with_added_tokens=True) != tokenizer.get_vocab_size(with_added_tokens=False):
        raise DataError(f"{folder} adds tokens outside its vocabulary: put them into vocab.txt, in place of [unusedN]")
    if set(tokenizer.get_vocab().values()) != set(range(tokenizer.get_vocab_size())):
        raise DataError(f"{folder} does not number its vocabulary from 0 up without a gap: it is not a BERT's")
    return _framed(tokenizer, special)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json`, `vocab.txt` and `tokenizer_config.json`, which Hugging Face's BertTokenizerFast loads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": _parts(tokenizer)["normalizer"].get("lowercase", True),
        **{f"{name}_token": SPECIAL_TEXTS[field] for name, field in _CONFIG_NAMES.items()},
    }
    contents = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "vocab.txt": "".join(f"{token}\n" for token in tokens_by_id(tokenizer)),
        "tokenizer_config.json": json.dumps(config, indent=2),
    }
    for name, content in contents.items():
        with written_aside(folder / name, DataError) as file:
            file.write(content.encode("utf-8"))


_CONFIG_NAMES = {"pad": "pad", "unk": "unknown", "cls": "classify", "sep": "separator", "mask": "mask"}


def tokens_by_id(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of the vocabulary in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def continuing_tokens(tokenizer: Tokenizer) -> Array:
    """Return bool [V]: which tokens continue the word of the token before them."""
    return np.array([token.startswith(_CONTINUING) for token in tokens_by_id(tokenizer)])


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of everything that determines the ids of a text: vocabulary, normalisation, splitting."""
    parts = {**_parts(tokenizer), "vocabulary": tokens_by_id(tokenizer), "special": asdict(special_tokens(tokenizer))}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    whole = json.loads(tokenizer.to_str())
    model = {name: value for name, value in whole["model"].items() if name != "vocab"}
    return {"normalizer": whole["normalizer"] or {}, "pre_tokenizer": whole["pre_tokenizer"], "model": model}
