"""The tokenizer: its files, and the errors for files that it cannot use."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from lucid.data.tokenizer import (
    SpecialTokens,
    bert_tokenizer,
    continuing_tokens,
    load_tokenizer,
    save_tokenizer,
    special_tokens,
    tokenizer_hash,
    tokens_by_id,
)
from lucid.errors import DataError
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

TEXTS = ["The quick brown foxes jumped over the lazy dogs' backs.", "Quickly, quicker, quickest: the fox was quick!"]
TEXTS += ["Über den Wölken 雲 muß die Freiheit wohl grenzenlos sein."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(lambda: TEXTS, VocabularySettings(200, cased=False, keep_accents=False)).tokenizer


def test_special_tokens_come_first(tokenizer: Tokenizer) -> None:
    assert special_tokens(tokenizer) == SpecialTokens(0, 1, 2, 3, 4)
    assert tokens_by_id(tokenizer)[:5] == SPECIAL


def test_text_survives_encoding_except_for_case_and_accents(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("The Fóx was quick").ids) == "the fox was quick"


def test_a_pair_is_framed_by_special_tokens(tokenizer: Tokenizer) -> None:
    encoding = tokenizer.encode("the fox", "was quick")
    assert (encoding.tokens[0], encoding.tokens[-1]) == ("[CLS]", "[SEP]")
    assert set(encoding.type_ids) == {0, 1}


def test_a_saved_tokenizer_is_the_same_when_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert loaded.encode(TEXTS[0]).ids == tokenizer.encode(TEXTS[0]).ids


def test_a_vocabulary_alone_is_enough(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(tokenizer)
    (tmp_path / "tokenizer_config.json").unlink()
    assert tokenizer_hash(load_tokenizer(tmp_path)) == tokenizer_hash(tokenizer)


def test_a_byte_order_mark_is_no_part_of_a_token(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "fox"]), encoding="utf-8-sig")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}', encoding="utf-8-sig")
    assert tokens_by_id(load_tokenizer(tmp_path)) == [*SPECIAL, "fox"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_input_chars_per_word", 10**18, "max_input_chars_per_word is 10{18}; BERT's is 100, and 1,000 the most"),
        ("max_input_chars_per_word", 0, "max_input_chars_per_word is 0"),
        ("max_input_chars_per_word", None, "max_input_chars_per_word is None"),
        ("continuing_subword_prefix", "", "continuing_subword_prefix is ''; BERT's is '##'"),
        ("continuing_subword_prefix", None, "continuing_subword_prefix is None; BERT's is '##'"),
        ("unk_token", "unknown", r"unk_token is 'unknown'; BERT's is '\[UNK\]'"),
        ("vocab", {"fox": 0}, r"the tokenizer in .* has no \[PAD\]"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_model_that_is_not_a_berts_is_an_error(
    tokenizer: Tokenizer, tmp_path: Path, name: str, value: object, message: str
) -> None:
    content = json.loads(tokenizer.to_str())
    content["model"][name] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": []}))
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_vocabulary_beyond_the_limit_is_an_error(
    tokenizer: Tokenizer, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = tokenizer.get_vocab_size()
    monkeypatch.setattr("lucid.data.tokenizer.LARGEST_VOCABULARY", size - 1)
    save_tokenizer(tokenizer, tmp_path / "all")
    (tmp_path / "all" / name).rename(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} .* it has {size} tokens, and a vocabulary may have {size - 1}"):
        load_tokenizer(tmp_path)


def test_a_word_limit_of_other_models_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = json.loads(tokenizer.to_str())
    content["model"]["max_input_chars_per_word"] = 200
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(load_tokenizer(tmp_path).encode("x" * 150, add_special_tokens=False).ids) > 1
    assert load_tokenizer(tmp_path).encode("x" * 250, add_special_tokens=False).tokens == ["[UNK]"]


def test_a_cased_vocabulary_keeps_case_and_has_another_hash(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL, "Fox", "fox"]) + "\n")
    uncased = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    cased = load_tokenizer(tmp_path)
    assert cased.encode("Fox fox", add_special_tokens=False).ids == [5, 6]
    assert uncased.encode("Fox fox", add_special_tokens=False).ids == [6, 6]
    assert tokenizer_hash(cased) != tokenizer_hash(uncased)


def test_special_tokens_may_have_any_ids(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["fox", *reversed(SPECIAL)]))
    assert special_tokens(load_tokenizer(tmp_path)) == SpecialTokens(5, 4, 3, 2, 1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no tokenizer"),
        ({"vocab.txt": "[PAD]\n[UNK]\nfox\n"}, r"no \[CLS\], \[SEP\], \[MASK\]"),
        ({"vocab.txt": "\n".join([*SPECIAL, "fox", "", "fox"])}, r"vocab\.txt .*line 8 is 'fox', as line 6"),
        ({"vocab.txt": "\n".join(SPECIAL), "tokenizer_config.json": "{"}, r"tokenizer_config\.json cannot be read"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json cannot be read"),
        ({"tokenizer.json": " " * ((1 << 26) + 1)}, r"tokenizer\.json .* is larger than 64 MiB"),
    ],
)
def test_a_folder_without_a_usable_tokenizer_is_an_error(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_kind_is_an_error(tmp_path: Path) -> None:
    from tokenizers import models

    Tokenizer(models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="its model is 'BPE'; BERT's is WordPiece"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("cased", [False, True])
def test_pieces_of_scripts_without_spaces_are_words_of_their_own(cased: bool) -> None:
    """As in whole word masking of BERTs of these languages without a word segmenter."""
    continuing = ["##ing", "##é", "##1", "##ский", "##ल", "##া", "##ب", "##어", "##ς", "##ա", "##ה", "##ꀀ"]
    words = [
        "字",
        "##字",
        "##あ",
        "##ン",
        "##ﾝ",
        "##々",
        "##ㄅ",
        "##𠀀",
        "##ไทย",
        "##ລາວ",
        "##བོ",
        "##မြ",
        "##ខ",
        "ing",
        ".",
    ]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *continuing, *words]
    tokenizer = bert_tokenizer({token: number for number, token in enumerate(tokens)}, lowercase=not cased)
    found = [token for token, goes_on in zip(tokens, continuing_tokens(tokenizer)[0], strict=True) if goes_on]
    assert found == continuing
