"""A folder with two tiny models, and the files of two tasks."""

import pytest
from tasks import tiny_config, tiny_tokenizer, write_texts, write_words

import lucid
from lucid.data.tokenizer import save_tokenizer
from lucid.models import BERTForPreTraining


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """`model` and `other`, of two seeds; `train.tsv` and `test.tsv`; `train.conll` and `test.conll`."""
    folder = tmp_path_factory.mktemp("task")
    for seed, name in enumerate(("model", "other")):
        lucid.manual_seed(seed)
        BERTForPreTraining(tiny_config()).save_pretrained(folder / name)
        save_tokenizer(tiny_tokenizer(), folder / name)
    for write, suffix in ((write_texts, "tsv"), (write_words, "conll")):
        write(folder / f"train.{suffix}", 96, seed=1)
        write(folder / f"test.{suffix}", 40, seed=2)
    return folder
