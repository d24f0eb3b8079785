"""Tokenizers in all forms in which other programs save them: files, settings and added tokens."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from lucid.data.tokenizer import (
    bert_tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_files,
    tokenizer_hash,
    tokens_by_id,
)
from lucid.errors import DataError
from lucid.preparation.encoder import TextEncoder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *["the", "fox", "Fox", "##es", "x", "über", "uber", "雲", "a雲b"]]
V = len(WORDS)
TEXT = "Fox covid19 xcovid19 COVID19 <e1> <E1> the<e1> foxes über a雲b [MASK]"


def token(text: str, special: bool = False, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "rstrip": False, "single_word": False}
    return {"content": text, **plain, "normalized": not special, "special": special, **flags}


ADDED = {V: token("covid19"), V + 1: token("<E1>", special=True)}


def write(folder: Path, **contents: object) -> Path:
    """Write a `vocab.txt`, and JSON files whose names lack their suffix."""
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def plain(**normalisation: bool | None) -> Tokenizer:
    """Return a tokenizer without added tokens."""
    return bert_tokenizer({word: number for number, word in enumerate(WORDS)}, **normalisation)


def larger() -> Tokenizer:
    """Return a tokenizer with two added tokens."""
    tokenizer = plain(lowercase=True)
    tokenizer.add_tokens([AddedToken("covid19"), AddedToken("<E1>", special=True, normalized=False)])
    return tokenizer


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"added_tokens_decoder": ADDED}},
        {"added_tokens": {"<E1>": V + 1, "covid19": V}, "tokenizer_config": {"additional_special_tokens": ["<E1>"]}},
        {
            "added_tokens": {"<E1>": V + 1, "covid19": V},
            "special_tokens_map": {"additional_special_tokens": [token("<E1>")]},
        },
        {"tokenizer": json.loads(larger().to_str()), "added_tokens": {"covid19": V}},
        {
            "tokenizer": json.loads(plain().to_str()),
            "added_tokens": {"covid19": V},
            "special_tokens_map": {"additional_special_tokens": ["<E1>"]},
        },
        {"added_tokens": {"covid19": V}, "tokenizer_config": {"extra_special_tokens": {"image_token": "<E1>"}}},
        {
            "added_tokens": {"other": V + 9},
            "special_tokens_map": {"additional_special_tokens": ["other"]},
            "tokenizer_config": {"added_tokens_decoder": ADDED},
        },
    ],
    ids=["decoder", "list", "map", "tokenizer.json", "beside tokenizer.json", "named", "replaced"],
)
def test_added_tokens_are_read_from_every_form(files: dict[str, Any], tmp_path: Path) -> None:
    read = load_tokenizer(write(tmp_path, **files))
    assert tokens_by_id(read)[V:] == ["covid19", "<E1>"]
    assert read.encode(TEXT).ids == larger().encode(TEXT).ids
    assert tokenizer_hash(read) == tokenizer_hash(larger())


def test_added_tokens_survive_saving_with_or_without_tokenizer_json(tmp_path: Path) -> None:
    save_tokenizer(larger(), tmp_path)
    assert len((tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()) == V
    for _ in range(2):
        read = load_tokenizer(tmp_path)
        assert tokenizer_hash(read) == tokenizer_hash(larger())
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)


def test_a_text_is_prepared_with_its_added_tokens_but_without_the_special_ones_of_bert() -> None:
    tokenizer = larger()
    ids, counts = TextEncoder(tokenizer, most_bytes=1 << 20).encode([TEXT])
    words = TEXT.removesuffix("[MASK]")
    assert counts == [len(ids)]
    expected = tokenizer.encode(words, add_special_tokens=False).ids
    assert ids[: len(expected)].tolist() == expected
    assert {V, V + 1} <= set(expected)
    assert WORDS.index("[MASK]") not in ids


def test_added_tokens_change_the_hash(tmp_path: Path) -> None:
    plain = load_tokenizer(write(tmp_path))
    hashes = {tokenizer_hash(plain), tokenizer_hash(larger())}
    flagged = load_tokenizer(write(tmp_path, tokenizer_config={"added_tokens_decoder": {6: token("fox")}}))
    assert tokens_by_id(flagged) == tokens_by_id(plain)
    assert len({*hashes, tokenizer_hash(flagged)}) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens": {"new": V + 3}}, f"'new' has the id {V + 3}, but {V} would be its place"),
        ({"added_tokens": {"fox": V}}, f"'fox' has the id {V}, but 6 would be its place"),
        ({"added_tokens": {"": V}}, f"'' with the id {V} is not in the vocabulary"),
        ({"added_tokens": {"new york": V}}, "'new york', which may take in spaces"),
        ({"tokenizer_config": {"added_tokens_decoder": {V: token("new", lstrip=True)}}}, "which may take in spaces"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": token("new")}}}, "cannot be read"),
        ({"tokenizer_config": {"added_tokens_decoder": {V: {}}}}, "cannot be read"),
        ({"added_tokens": {"new": "1"}}, "cannot be read"),
        ({"added_tokens": []}, r"added_tokens\.json cannot be read"),
        ({"special_tokens_map": {"additional_special_tokens": [1]}}, "1 is not the text of a token"),
        ({"tokenizer_config": {"strip_accents": "no"}}, "strip_accents is 'no'; it takes true or false"),
        ({"tokenizer": json.loads(larger().to_str()), "added_tokens": {"covid19": 3}}, "'covid19' has the id 3"),
    ],
)
def test_added_tokens_that_would_get_other_ids_are_refused(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_tokenizer(write(tmp_path, **files))


@pytest.mark.parametrize("text", SPECIAL)
@pytest.mark.parametrize("file", ["tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize("other", ["fox", token("fox")], ids=["text", "object"])
def test_special_tokens_that_are_not_berts_are_refused(text: str, file: str, other: Any, tmp_path: Path) -> None:
    name = f"{text.strip('[]').lower()}_token"
    for berts in (text, token(text), None):
        assert load_tokenizer(write(tmp_path, **{file: {name: berts}})).encode(TEXT).ids == plain().encode(TEXT).ids
    with pytest.raises(DataError, match=f"its {name} is 'fox'; BERT's is {re.escape(repr(text))}"):
        load_tokenizer(write(tmp_path, **{file: {name: other}}))


def test_special_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL[:-1], "fox"]))
    content = json.loads(larger().to_str())
    del content["model"]["vocab"]["[MASK]"]
    content["model"]["vocab"]["covid19"] = 4
    content["added_tokens"] = [{"id": V, **token("[MASK]", special=True)}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="adds special tokens of BERT after its vocabulary"):
        load_tokenizer(tmp_path)


NORMALISATION = "do_lower_case", "strip_accents", "tokenize_chinese_chars"


@pytest.mark.parametrize("name", NORMALISATION)
@pytest.mark.parametrize("with_json", [False, True], ids=["vocab.txt", "tokenizer.json"])
def test_settings_of_normalisation_are_read_and_written(name: str, with_json: bool, tmp_path: Path) -> None:
    settings = {"do_lower_case": False, "strip_accents": None, "tokenize_chinese_chars": True}
    settings |= {name: not settings[name], "model_max_length": 7, "tokenizer_class": "BertTokenizer"}
    content = {"tokenizer": json.loads(larger().to_str())} if with_json else {}
    read = load_tokenizer(write(tmp_path, tokenizer_config=settings, **content))
    expected = bert_tokenizer(
        {word: number for number, word in enumerate(WORDS)},
        lowercase=settings["do_lower_case"],
        strip_accents=settings["strip_accents"],
        handle_chinese_chars=settings["tokenize_chinese_chars"],
    )
    assert read.normalizer.normalize_str("Ün 雲") == expected.normalizer.normalize_str("Ün 雲")
    written = json.loads(tokenizer_files(read, longest=64)["tokenizer_config.json"])
    assert written | settings == written | {"model_max_length": 7}
    assert written["model_max_length"] == 64


def test_a_normaliser_that_transformers_would_change_is_left_to_tokenizer_json(tmp_path: Path) -> None:
    content = json.loads(larger().to_str())
    for changes in ({"normalizer": None}, {"model": {**content["model"], "max_input_chars_per_word": 50}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps({**content, **changes}))
        save_tokenizer(load_tokenizer(tmp_path), tmp_path)
        config = json.loads((tmp_path / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        # What BertTokenizer can know of it, if it is opened by that.
        assert ("do_lower_case" in config) == ("normalizer" not in changes)
        (tmp_path / "tokenizer_config.json").unlink()


CONTRARY = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False}


@pytest.mark.parametrize("settings", [{}, CONTRARY], ids=["absent", "present"])
@pytest.mark.parametrize("agrees", [True, False], ids=["agrees", "contradicts"])
@pytest.mark.parametrize(
    ("kind", "model", "is_berts"),
    [
        ("BertTokenizer", None, True),
        ("BertTokenizerFast", None, True),
        (None, {"model_type": "bert"}, True),
        (None, {"tokenizer_class": "BertTokenizer"}, True),
        (None, None, False),
        ("PreTrainedTokenizerFast", {"model_type": "bert"}, False),
        ("TokenizersBackend", {"model_type": "bert"}, False),
    ],
)
def test_the_class_decides_which_file_says_how_to_normalise(
    kind: str | None,
    model: dict[str, str] | None,
    is_berts: bool,
    agrees: bool,
    settings: dict[str, bool],
    tmp_path: Path,
) -> None:
    by_config = plain(
        lowercase=not settings, strip_accents=False if settings else None, handle_chinese_chars=not settings
    )
    contrary = plain(lowercase=bool(settings), strip_accents=not settings, handle_chinese_chars=bool(settings))
    by_json = by_config if agrees else contrary
    files = {"tokenizer": json.loads(by_json.to_str())} | ({"config": model} if model else {})
    config = {"tokenizer_class": kind, **settings} if kind else settings
    read = load_tokenizer(write(tmp_path, tokenizer_config=config, **files))
    assert tokenizer_hash(read) == tokenizer_hash(by_config if is_berts else by_json)


JAPANESE = r"which first looks for words in a dictionary: train another .*, or put spaces between the words"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"}},
            f"class BertJapaneseTokenizer, {JAPANESE}",
        ),
        ({"config": {"model_type": "bert", "tokenizer_class": "BertJapaneseTokenizer"}}, JAPANESE),
        ({"tokenizer_config": {"do_lower_case": False, "word_tokenizer_type": "mecab"}}, JAPANESE),
        ({"tokenizer_config": {"subword_tokenizer_type": "character"}}, JAPANESE),
        (
            {
                "tokenizer_config": {"tokenizer_class": "BertJapaneseTokenizer"},
                "tokenizer": json.loads(plain().to_str()),
            },
            JAPANESE,
        ),
        (
            {"tokenizer_config": {"tokenizer_class": "BertweetTokenizer"}},
            "is of class BertweetTokenizer, and lucid reads",
        ),
        ({"config": {"tokenizer_class": "EsmTokenizer"}}, "is of class EsmTokenizer, and lucid reads"),
    ],
)
def test_a_class_that_splits_text_in_another_way_is_refused(
    files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"the tokenizer in {tmp_path} .*{message}"):
        load_tokenizer(write(tmp_path, **files))


def test_a_folder_without_vocabulary_names_its_class_if_that_is_why(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(DataError, match=r"expected tokenizer\.json or vocab\.txt in it"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    with pytest.raises(DataError, match="is of class RobertaTokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["DistilBertTokenizer", "LayoutLMTokenizerFast", "PreTrainedTokenizerFast", None])
def test_a_vocabulary_is_read_for_classes_that_split_as_bert_does(kind: str | None, tmp_path: Path) -> None:
    config = {"do_lower_case": False, **({"tokenizer_class": kind} if kind else {})}
    read = load_tokenizer(write(tmp_path, tokenizer_config=config))
    assert tokenizer_hash(read) == tokenizer_hash(plain(lowercase=False))
