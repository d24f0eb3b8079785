"""The rest of a tokenizer's folder: how text is normalised, and which tokens were added to the vocabulary.

As in transformers, a tokenizer of BERT's class normalises as `tokenizer_config.json` says, and one of another class as
`tokenizer.json` says. The added tokens are those in `tokenizer.json`, and then those in `tokenizer_config.json`. Where
this describes none, `added_tokens.json` and `special_tokens_map.json` do.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

# The settings of `tokenizer_config.json`, what BERT's normaliser calls them, and their defaults.
_NORMALISATION = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
# Ends of the names of transformers' classes that make BERT's normaliser anew, such as `DistilBertTokenizer`.
_BERTS_CLASSES = "BertTokenizer", "ElectraTokenizer", "EncoderTokenizer", "ReaderTokenizer", "LayoutLMTokenizer"
# Classes of any tokenizer.
_GENERAL_CLASSES = "PreTrainedTokenizer", "TokenizersBackend"
# Settings of Japanese tokenizers alone.
_JAPANESE = "word_tokenizer_type", "subword_tokenizer_type"
# Old versions of transformers and new ones name the list differently.
_SPECIAL_LISTS = "additional_special_tokens", "extra_special_tokens"
_FLAGS = "single_word", "lstrip", "rstrip", "normalized", "special"


def is_berts(settings: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Return whether the class is BERT's that transformers chooses by `tokenizer_config.json` and `config.json`."""
    kind = _class(settings, model)
    return kind.endswith(_BERTS_CLASSES) if kind else model.get("model_type") == "bert"


def _class(settings: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    """Return the name of the class without "Fast"; "" if there is none."""
    return str(settings.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")


def foreign_class(settings: Mapping[str, Any], model: Mapping[str, Any], is_described: bool) -> str | None:
    """Return why a tokenizer of this class would get other ids here than in transformers, and what to do, or None.

    It `is_described` if there is a `tokenizer.json`, which says how any class splits text.
    """
    kind, instead = _class(settings, model), "train another (lucid prepare without --tokenizer)"
    if "Japanese" in kind or any(settings.get(name) for name in _JAPANESE):
        return (
            f"is of class {kind or 'BertJapaneseTokenizer'}, which first looks for words in a dictionary: {instead}, "
            "or put spaces between the words of the text, and take a folder with its vocab.txt and a "
            'tokenizer_config.json of {"do_lower_case": false, "tokenize_chinese_chars": false}'
        )
    if not is_described and kind and not kind.endswith((*_BERTS_CLASSES, *_GENERAL_CLASSES)):
        return f"is of class {kind}, and lucid reads the WordPiece tokenizers of BERT: {instead}"
    return None


def check_special_tokens(settings: Mapping[str, Any], expected: Mapping[str, str]) -> None:
    """Raise `ValueError` if a setting, such as `cls_token`, is not the token that is `expected`.

    transformers would put the other token around texts, or in place of unknown words.
    """
    for name, text in expected.items():
        token = settings.get(name)
        if token is not None and _text(token) != text:
            raise ValueError(f"its {name} is {_text(token)!r}; BERT's is {text!r}")


def normalisation(settings: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return the arguments for BERT's normaliser by `tokenizer_config.json`. Raises `ValueError`."""
    found: dict[str, bool | None] = {}
    for name, (argument, default) in _NORMALISATION.items():
        value = settings.get(name, default)
        if not isinstance(value, bool) and value is not default:
            raise ValueError(f"{name} is {value!r}; it takes true or false")
        found[argument] = value
    return found


def normalisation_settings(normalizer: Mapping[str, Any]) -> dict[str, bool | None]:
    """Return the settings for `tokenizer_config.json` of a normaliser in `tokenizer.json`."""
    return {name: normalizer.get(argument, default) for name, (argument, default) in _NORMALISATION.items()}


def add_tokens(tokenizer: Tokenizer, settings: Mapping[str, Any], ids: Mapping[str, Any]) -> None:
    """Add the tokens that `settings` describe, or else those of `added_tokens.json`, which has only `ids`.

    `settings` are those of `tokenizer_config.json`, with the lists of `special_tokens_map.json`. Added tokens that
    `tokenizer` has already stay as they are. Raises `ValueError`.
    """
    described = settings.get("added_tokens_decoder")
    special = [_text(token) for name in _SPECIAL_LISTS for token in _listed(settings.get(name) or ())]
    if described:
        tokens = {int(number): _added_token(token) for number, token in described.items()}
    else:
        tokens = {number: _plain_token(text, text in special) for text, number in ids.items()}
    _add_new(tokenizer, [tokens[number] for number in sorted(tokens)])
    check_ids(tokenizer, ((token.content, number) for number, token in tokens.items()))
    _add_new(tokenizer, [_plain_token(text, True) for text in special])


def _add_new(tokenizer: Tokenizer, tokens: list[AddedToken]) -> None:
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in tokens if token.content not in known])


def _listed(tokens: Any) -> Iterable[Any]:
    """Return the tokens of a list, or of an object whose keys are names for them, such as `image_token`."""
    found: Iterable[Any] = tokens.values() if isinstance(tokens, dict) else tokens
    return found


def _text(token: Any) -> str:
    text = token["content"] if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not the text of a token")
    return text


def _plain_token(text: str, special: bool) -> AddedToken:
    return AddedToken(text, special=special, normalized=not special)


def _added_token(description: Mapping[str, Any]) -> AddedToken:
    return AddedToken(description["content"], **{flag: description[flag] for flag in _FLAGS if flag in description})


def check_ids(tokenizer: Tokenizer, ids: Iterable[tuple[str, int]]) -> None:
    """Raise `ValueError` unless each added token has the id that it is said to have."""
    for text, number in ids:
        place = tokenizer.token_to_id(text)
        if place is None:
            raise ValueError(f"the added token {text!r} with the id {number} is not in the vocabulary: remove it")
        if place != number:
            raise ValueError(
                f"the added token {text!r} has the id {number}, but {place} would be its place: "
                "added tokens are numbered from the end of the vocabulary without a gap"
            )


def added_tokens(tokenizer: Tokenizer, special: Iterable[str]) -> dict[int, AddedToken]:
    """Return the added tokens other than the `special` ones of every BERT, by id and in its order."""
    known, found = set(special), tokenizer.get_added_tokens_decoder()
    return {number: found[number] for number in sorted(found) if found[number].content not in known}


def describe(token: AddedToken) -> dict[str, Any]:
    """Return an added token as `tokenizer_config.json` describes it."""
    return {"content": token.content, **{flag: getattr(token, flag) for flag in _FLAGS}}
