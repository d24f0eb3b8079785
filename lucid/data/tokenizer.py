"""Loads and saves the WordPiece tokenizer, in the files that Hugging Face's BERT reads."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lucid.backend import Array
from lucid.data import tokenizer_settings
from lucid.data.unspaced import UNSPACED
from lucid.errors import DataError
from lucid.files import open_text, reason_of, written_aside
from lucid.json_values import parse_json

# The files of a tokenizer, in the order in which they are written.
CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = "tokenizer.json", "vocab.txt", CONFIG_FILE
LARGEST_VOCABULARY = 1 << 20
# Bytes of one of these files: a vocabulary of the largest size has about half as many.
_LARGEST_FILE = 1 << 26
# Pieces of a word begin with this in every BERT; masking and decoding rely on it.
CONTINUING = "##"
_IN_WORD, _UNSPACED_END = re.compile(f"{CONTINUING}[^{UNSPACED}]"), re.compile(f"[{UNSPACED}]$")
# Characters of a word: longer ones are unknown. The time of a word grows with the cube of its length.
BERTS_LONGEST_WORD, _LONGEST_WORD = 100, 1000

T = TypeVar("T")


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
# Their settings in `tokenizer_config.json` and `special_tokens_map.json`: `pad_token`, `unk_token` and so on.
_SPECIAL_SETTINGS = {f"{text.strip('[]').lower()}_token": text for text in SPECIAL_TEXTS.values()}


def special_tokens(tokenizer: Tokenizer, name: str = "the tokenizer") -> SpecialTokens:
    """Return the ids of the special tokens. Raises `DataError`, which calls the tokenizer `name`, if one is missing."""
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in SPECIAL_TEXTS.values() if text not in vocabulary]
    if missing:
        raise DataError(f"{name} has no {', '.join(missing)}: BERT needs {', '.join(SPECIAL_TEXTS.values())}")
    return SpecialTokens(**{name: vocabulary[text] for name, text in SPECIAL_TEXTS.items()})


def bert_tokenizer(
    vocabulary: dict[str, int], longest_word: int = BERTS_LONGEST_WORD, /, **normalisation: Any
) -> Tokenizer:
    """Return the tokenizer of a BERT with this vocabulary. Raises `DataError` if a special token is missing.

    Words of more than `longest_word` characters are unknown. `normalisation` has arguments of
    `tokenizers.normalizers.BertNormalizer`.
    """
    unknown = SPECIAL_TEXTS["unknown"]
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=longest_word))
    tokenizer.normalizer = normalizers.BertNormalizer(**normalisation)
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


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a WordPiece tokenizer from `tokenizer.json` or `vocab.txt`, as transformers does.

    See `tokenizer_settings` for the other files. Both lucid and Hugging Face's BERT write such folders. Raises
    `DataError` if the folder holds no such tokenizer.
    """
    folder = Path(folder)
    config = folder / CONFIG_FILE
    settings, added = _json_object(config), {}
    if "added_tokens_decoder" not in settings:
        settings = _json_object(folder / "special_tokens_map.json") | settings
        added = _json_object(folder / "added_tokens.json")
    model, path = _json_object(folder / "config.json"), folder / "tokenizer.json"
    is_described = os.path.lexists(path)  # also by a link to a file that is gone: nothing stands in for that
    if problem := tokenizer_settings.foreign_class(settings, model, is_described):
        raise DataError(f"the tokenizer in {folder} {problem}")
    _as_part(folder, lambda: tokenizer_settings.check_special_tokens(settings, _SPECIAL_SETTINGS))
    if is_described:
        normalisation: dict[str, bool | None] = {}
        if tokenizer_settings.is_berts(settings, model):
            normalisation = _as_part(config, lambda: tokenizer_settings.normalisation(settings))
        tokenizer = _parsed(path, lambda text: _of_bert(text, normalisation))
    elif os.path.lexists(folder / "vocab.txt"):
        normalisation = _as_part(config, lambda: tokenizer_settings.normalisation(settings))
        tokenizer = _parsed(folder / "vocab.txt", lambda text: bert_tokenizer(_vocabulary(text), **normalisation))
    else:
        raise DataError(f"{folder} holds no tokenizer: expected tokenizer.json or vocab.txt in it")
    _as_part(folder, lambda: tokenizer_settings.add_tokens(tokenizer, settings, added))
    return _checked(tokenizer, folder)


def _json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file."""
    if not os.path.lexists(path):
        return {}

    def parse(text: str) -> dict[str, Any]:
        content = parse_json(text)
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        return content

    found: dict[str, Any] = _parsed(path, parse)
    return found


def _parsed(path: Path, parse: Callable[[str], T]) -> T:
    def read() -> T:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"it is larger than {_LARGEST_FILE >> 20} MiB")
        with open_text(path) as file:
            return parse(file.read())

    return _as_part(path, read)


def _as_part(path: Path, read: Callable[[], T]) -> T:
    """Return what `read` returns. Any error is a `DataError` that names `path`."""
    try:
        return read()
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


def _of_bert(text: str, normalisation: Mapping[str, bool | None]) -> Tokenizer:
    """Return the tokenizer that a `tokenizer.json` describes, with the `normalisation` replaced, if there is one.

    Raises `ValueError` if it is not a BERT's.
    """
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
    if normalisation:
        content["normalizer"] = {"clean_text": True, **(content.get("normalizer") or {}), **normalisation}
        content["normalizer"]["type"] = "BertNormalizer"
    absent = dict.fromkeys(("truncation", "padding", "post_processor", "decoder"))
    tokenizer = Tokenizer.from_str(json.dumps({**content, **absent}))
    tokenizer_settings.check_ids(
        tokenizer, ((token["content"], token["id"]) for token in content.get("added_tokens") or ())
    )
    return tokenizer


def _check_model(model: dict[str, Any]) -> None:
    """Raise `ValueError` unless the settings of a WordPiece model are a BERT's, and encode any text soon."""
    for name, expected in (("unk_token", SPECIAL_TEXTS["unknown"]), ("continuing_subword_prefix", CONTINUING)):
        if model.get(name) != expected:
            raise ValueError(f"its {name} is {model.get(name)!r}; BERT's is {expected!r}")
    longest = model.get("max_input_chars_per_word")
    if type(longest) is not int or not 1 <= longest <= _LONGEST_WORD:
        raise ValueError(f"its max_input_chars_per_word is {longest!r}; BERT's is 100, and {_LONGEST_WORD:,} the most")
    if isinstance(model.get("vocab"), dict):
        _check_size(len(model["vocab"]))


def _checked(tokenizer: Tokenizer, folder: Path) -> Tokenizer:
    special = special_tokens(tokenizer, f"the tokenizer in {folder}")
    if set(tokenizer.get_vocab().values()) != set(range(tokenizer.get_vocab_size())):
        raise DataError(f"{folder} does not number its vocabulary from 0 up without a gap: it is not a BERT's")
    own = tokenizer.get_vocab_size(with_added_tokens=False)
    if max(special.ids) >= own:
        raise DataError(f"{folder} adds special tokens of BERT after its vocabulary: put them into the vocabulary")
    _as_part(folder, lambda: _check_size(tokenizer.get_vocab_size()))
    for token in added_tokens(tokenizer).values():
        if token.lstrip or token.rstrip or token.content.split() != [token.content]:
            raise DataError(
                f"{folder} adds the token {token.content!r}, which may take in spaces: lucid encodes text word by "
                "word, so its ids would differ"
            )
    return _framed(tokenizer, special)


def without_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the same ids for which a special token of BERT spelt out in a text is text."""
    plain = without_added_tokens(tokenizer)
    plain.add_tokens(list(added_tokens(tokenizer).values()))
    return plain


def without_added_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Return a tokenizer with the same vocabulary, normalisation and splitting, but without added tokens."""
    plain = Tokenizer(tokenizer.model)
    plain.normalizer, plain.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    return plain


def added_tokens(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Return the added tokens by id, without the special tokens of every BERT."""
    return tokenizer_settings.added_tokens(tokenizer, SPECIAL_TEXTS.values())


def tokenizer_files(tokenizer: Tokenizer, longest: int | None = None) -> dict[str, bytes]:
    """Return the content of `TOKENIZER_FILES`, by name, from which transformers loads the same tokenizer.

    `longest` is the number of tokens to which transformers truncates, if it is asked to: what the model takes.
    """
    parts, added = _parts(tokenizer), added_tokens(tokenizer)
    normalizer, longest_word = parts["normalizer"], parts["model"]["max_input_chars_per_word"]
    # BertTokenizer makes normaliser and model anew, from these settings alone. The other class reads tokenizer.json.
    is_cleaned = normalizer.get("clean_text", False)
    is_plain = is_cleaned and longest_word == BERTS_LONGEST_WORD
    config: dict[str, Any] = {
        "tokenizer_class": "BertTokenizer" if is_plain else "PreTrainedTokenizerFast",
        # Whoever opens it by BertTokenizer all the same gets other ids for long words alone.
        **(tokenizer_settings.normalisation_settings(normalizer) if is_cleaned else {}),
        **({} if longest is None else {"model_max_length": longest}),
        **_SPECIAL_SETTINGS,
    }
    if added:
        config["added_tokens_decoder"] = {number: tokenizer_settings.describe(token) for number, token in added.items()}
    words = tokenizer.get_vocab(with_added_tokens=False)
    contents = {
        "tokenizer.json": tokenizer.to_str(pretty=True),
        "vocab.txt": "".join(f"{token}\n" for token in sorted(words, key=words.__getitem__)),
        CONFIG_FILE: json.dumps(config, indent=2),
    }
    return {name: content.encode("utf-8") for name, content in contents.items()}


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path, longest: int | None = None) -> None:
    """Write the `tokenizer_files`. Raises `DataError` if they cannot be written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tokenizer_files(tokenizer, longest).items():
        with written_aside(folder / name, DataError) as file:
            file.write(content)


def tokens_by_id(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens of the vocabulary in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def continuing_tokens(tokenizer: Tokenizer) -> tuple[Array, Array]:
    """Return, as two bool [V], which tokens continue the word of the token before them, and after which none does.

    Scripts without spaces have no words that a tokenizer could see: each of their pieces is a word of its own, with
    `##` too, such as the `##\u5b57` of bert-base-chinese.
    """
    tokens = tokens_by_id(tokenizer)
    continuing = [_IN_WORD.match(token) is not None for token in tokens]
    return np.array(continuing), np.array([_UNSPACED_END.search(token) is not None for token in tokens])


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of everything that determines the ids of a text: vocabulary, normalisation, splitting."""
    parts = {**_parts(tokenizer), "vocabulary": tokens_by_id(tokenizer), "special": asdict(special_tokens(tokenizer))}
    if added := added_tokens(tokenizer):
        parts["added"] = {number: tokenizer_settings.describe(token) for number, token in added.items()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _parts(tokenizer: Tokenizer) -> dict[str, Any]:
    whole = json.loads(tokenizer.to_str())
    model = {name: value for name, value in whole["model"].items() if name != "vocab"}
    return {"normalizer": whole["normalizer"] or {}, "pre_tokenizer": whole["pre_tokenizer"], "model": model}
