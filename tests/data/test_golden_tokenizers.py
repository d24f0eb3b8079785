"""Text in many scripts gets the ids of transformers, kept in `tests/golden/tokenizers.json`: none is needed here."""

import json
from pathlib import Path
from typing import Any

import pytest

from lucid.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash
from lucid.preparation.encoder import TextEncoder

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizers.json").read_text())
TEXTS, VOCABULARY = GOLDEN["texts"], GOLDEN["vocabulary"]
SETTINGS = "do_lower_case", "strip_accents", "tokenize_chinese_chars"
each_kind = pytest.mark.parametrize("kind", GOLDEN["kinds"])


def write(folder: Path, kind: str, with_json: bool) -> list[list[int]]:
    """Write the files that transformers 5 saves, or those of older versions, and return the ids of the texts."""
    golden: dict[str, Any] = GOLDEN["kinds"][kind]
    (folder / "tokenizer_config.json").write_text(json.dumps(golden["tokenizer_config.json"]))
    if with_json:
        content = golden["tokenizer.json"]
        content["model"]["vocab"] = {token: number for number, token in enumerate(VOCABULARY)}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    else:
        (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    ids: list[list[int]] = golden["ids"]
    return ids


def test_each_kind_has_ids_of_its_own() -> None:
    ids = {json.dumps(golden["ids"]) for golden in GOLDEN["kinds"].values()}
    assert len(ids) == 8


@each_kind
@pytest.mark.parametrize("with_json", [True, False], ids=["tokenizer.json", "vocab.txt"])
def test_a_folder_of_transformers_gives_its_ids(kind: str, with_json: bool, tmp_path: Path) -> None:
    expected = write(tmp_path, kind, with_json)
    tokenizer = load_tokenizer(tmp_path)
    for text, ids in zip(TEXTS, expected, strict=True):
        assert tokenizer.encode(text).ids == ids, text


@each_kind
def test_preparing_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    expected = write(tmp_path, kind, with_json=True)
    encoder = TextEncoder(load_tokenizer(tmp_path), most_bytes=1 << 20)
    compared = 0
    for text, ids in zip(TEXTS, expected, strict=True):
        # Sentences have single spaces and hardly any controls, and a special token that is spelt out in them is text.
        if text.split() == text.split(" ") and "[MASK]" not in text:
            assert encoder.encode([text])[0].tolist() == ids[1:-1], text
            compared += 1
    assert compared >= len(TEXTS) - 5


@each_kind
def test_a_saved_folder_gives_the_same_ids_by_every_file(kind: str, tmp_path: Path) -> None:
    expected = write(tmp_path, kind, with_json=True)
    tokenizer = load_tokenizer(tmp_path)
    for left_out in ("tokenizer.json", "vocab.txt"):
        saved = tmp_path / left_out.split(".")[0]
        save_tokenizer(tokenizer, saved, longest=512)
        config = json.loads((saved / "tokenizer_config.json").read_text())
        assert (config["tokenizer_class"], config["model_max_length"]) == ("BertTokenizer", 512)
        assert " ".join(f"{name}={config[name]}" for name in SETTINGS) == kind
        (saved / left_out).unlink()
        read = load_tokenizer(saved)
        assert tokenizer_hash(read) == tokenizer_hash(tokenizer)
        assert [read.encode(text).ids for text in TEXTS] == expected
