"""The tokenizer that lucid writes is the one that transformers loads, and the other way round. Needs transformers."""

import json
from itertools import product
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")

from lucid.data.tokenizer import bert_tokenizer, load_tokenizer, save_tokenizer, tokenizer_hash  # noqa: E402
from lucid.preparation.extension import with_words  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "fox", "Fox", "##es", "x", "über", "uber", "Uber", "雲", "a雲b", "a", "##b", "."]
TEXTS = ["Fox covid19 xcovid19 COVID19 <E1> <e1> the<E1> foxes.", "über Über uber a雲b 雲 [MASK]", "the" * 300]
LONGEST = 48


def read_by_both(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 64}))
    for kind in (transformers.AutoTokenizer, transformers.BertTokenizerFast):
        yield kind.from_pretrained(folder)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(
    "normalisation",
    [
        {"lowercase": True},
        {"lowercase": False},
        {"lowercase": True, "strip_accents": False},
        {"lowercase": False, "handle_chinese_chars": False},
    ],
    ids=str,
)
def test_transformers_gives_the_ids_of_a_saved_tokenizer_and_truncates(normalisation, added, tmp_path):
    tokenizer = bert_tokenizer({word: number for number, word in enumerate(WORDS)}, **normalisation)
    if added:
        extra = [
            transformers.AddedToken("covid19"),
            transformers.AddedToken("<E1>", special=True, normalized=False),
        ]
        tokenizer.add_tokens(extra)
    # What another program has left there is replaced.
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 7, "do_lower_case": "no"}')
    save_tokenizer(tokenizer, tmp_path, LONGEST)
    for theirs in read_by_both(tmp_path):
        assert theirs.model_max_length == LONGEST
        assert len(theirs) == tokenizer.get_vocab_size()
        for text in TEXTS:
            assert theirs(text).input_ids == tokenizer.encode(text).ids
        assert theirs(TEXTS[0], TEXTS[1]).token_type_ids == tokenizer.encode(TEXTS[0], TEXTS[1]).type_ids
        long = "fox " * 1200
        assert len(theirs(long, truncation=True).input_ids) == LONGEST
        padded = theirs(["fox", long], truncation=True, padding="max_length")
        assert [len(ids) for ids in padded.input_ids] == [LONGEST, LONGEST]
        assert padded.attention_mask[0] == [1] * 3 + [0] * (LONGEST - 3)


@pytest.mark.parametrize("only_vocabulary", [False, True])
def test_added_tokens_that_transformers_saves_get_its_ids(only_vocabulary, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    theirs.add_tokens(["covid19", transformers.AddedToken("a雲", single_word=True)])
    theirs.add_special_tokens({"additional_special_tokens": ["<E1>"]})
    if only_vocabulary:
        added = {token: number for token, number in theirs.get_added_vocab().items() if number >= len(WORDS)}
        (tmp_path / "added_tokens.json").write_text(json.dumps(added))
        theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    else:
        theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    for text in [*TEXTS, "a雲 xa雲 a雲x"]:
        assert ours.encode(text).ids == theirs(text).input_ids


@pytest.mark.parametrize("lowercase", [True, False])
def test_transformers_gives_the_ids_of_an_extended_tokenizer(lowercase, tmp_path):
    tokenizer = bert_tokenizer({word: number for number, word in enumerate(WORDS)}, lowercase=lowercase)
    tokenizer.add_tokens([transformers.AddedToken("<E1>", special=True, normalized=False), "covid19"])
    size = tokenizer.get_vocab_size()
    extended = with_words(tokenizer, ["雨", "foxes", "xcovid"])
    save_tokenizer(extended, tmp_path, LONGEST)
    for theirs in read_by_both(tmp_path):
        for text in TEXTS:
            assert theirs(text).input_ids == extended.encode(text).ids
        assert theirs("<E1>foxes雨 covid19", add_special_tokens=False).input_ids == [size - 2, size + 1, size, size - 1]


def test_a_tokenizer_without_normaliser_keeps_its_ids(tmp_path):
    tokenizer = bert_tokenizer({word: number for number, word in enumerate(WORDS)}, lowercase=True)
    content = json.loads(tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "normalizer": None}))
    ours = load_tokenizer(tmp_path)
    save_tokenizer(ours, tmp_path, LONGEST)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert theirs(text).input_ids == ours.encode(text).ids


GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "tokenizers.json").read_text())
KINDS = list(product((True, False), (True, False, None), (True, False)))


@pytest.mark.parametrize(("lowercase", "strip_accents", "chinese"), KINDS)
def test_transformers_gives_the_ids_of_every_kind_on_text_in_many_scripts(lowercase, strip_accents, chinese, tmp_path):
    vocabulary = {token: number for number, token in enumerate(GOLDEN["vocabulary"])}
    ours = bert_tokenizer(vocabulary, lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese)
    save_tokenizer(ours, tmp_path, LONGEST)
    for theirs in read_by_both(tmp_path):
        for text in GOLDEN["texts"]:
            assert theirs(text).input_ids == ours.encode(text).ids
        theirs.save_pretrained(tmp_path / "again")
        assert tokenizer_hash(load_tokenizer(tmp_path / "again")) == tokenizer_hash(ours)


def test_text_with_long_words_gets_the_same_ids_by_the_class_that_reads_tokenizer_json(tmp_path):
    vocabulary = {token: number for number, token in enumerate(GOLDEN["vocabulary"])}
    ours = bert_tokenizer(vocabulary, 500, lowercase=False)
    save_tokenizer(ours, tmp_path, LONGEST)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in GOLDEN["texts"]:
        assert theirs(text).input_ids == ours.encode(text).ids
