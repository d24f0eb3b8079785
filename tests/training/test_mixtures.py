"""A run on several corpora: the same on any number of ranks and after any stop; evaluated by corpus and together."""

import hashlib
import json
import re
from contextlib import chdir
from pathlib import Path

import pytest
from rank_pool.commands import command
from texts import made_up_text

from lucid.data import Corpus
from lucid.distributed import announced
from lucid.errors import LucidError
from lucid.preparation import prepare
from lucid.training.checkpoints.store import find_model
from lucid.training.config import load
from lucid.training.corpora import corpus_names, open_corpora

# 18 steps of 64 samples: the first block of a mixture, of 1,024, ends after step 16.
EXACT = ("train.reduction=exact", "train.global_batch=64", "train.micro_batch=16", "train.steps=18")
EXACT += ("data.sequence_length=16",)
SHORT = ("train.steps=4", "train.log_every=2", "optimizer.warmup_steps=1", "train.evaluation_samples=12")


@pytest.fixture(scope="session")
def corpora(corpus_folder, tmp_path_factory):
    """A function that prepares another corpus of this name, once, with the tokenizer of the first one."""
    folder = tmp_path_factory.mktemp("corpora")

    def corpus(name: str, held_out: float = 0.2) -> Path:
        if not (folder / name).exists():
            text = folder / f"{name}.txt"
            text.write_text(made_up_text(60, seed=len(name)), encoding="utf-8")
            prepare([text], folder / name, tokenizer=corpus_folder / "tokenizer", held_out=held_out)
        return folder / name

    return corpus


@pytest.fixture(scope="session")
def mixed(corpus_folder, corpora):
    """A function that returns the override for a mixture of the corpus of all tests and the corpus `other`."""
    return lambda *weights: mixture(zip((corpus_folder, corpora("other")), weights, strict=True))


def mixture(weighted):
    return f"data.path=[{', '.join(f'{{path: {path}, weight: {weight}}}' for path, weight in weighted)}]"


def digest(run_folder):
    return hashlib.sha256((find_model(run_folder) / "model.safetensors").read_bytes()).hexdigest()


def last_line(run_folder):
    return json.loads((run_folder / "metrics.jsonl").read_text().splitlines()[-1])


def refused(finished):
    """Return the only sentence of a refused command."""
    assert finished.returncode == 2, finished.stdout
    assert "Traceback" not in finished.stdout
    (sentence,) = re.findall(r"^lucid: (.*)$", finished.stdout, re.MULTILINE)
    return sentence


def test_one_two_and_four_ranks_train_the_same_on_a_mixture(undisturbed, losses, mixed):
    one = undisturbed(1, *EXACT, mixed(3, 1))
    assert losses(one)[18] < losses(one)[1]
    for ranks in (2, 4):
        other = undisturbed(ranks, *EXACT, mixed(3, 1))
        assert (digest(other), losses(other)) == (digest(one), losses(one))


def test_a_mixture_stopped_within_blocks_goes_on_the_same_on_other_ranks(
    undisturbed, train, train_until, losses, mixed, tmp_path
):
    for ranks, step in ((4, 5), (2, 17)):
        train_until(ranks, "stopped", step, *EXACT, mixed(3, 1))
    train(1, "stopped", *EXACT, mixed(3, 1))
    one = undisturbed(1, *EXACT, mixed(3, 1))
    assert (digest(tmp_path / "stopped"), losses(tmp_path / "stopped")) == (digest(one), losses(one))


def test_packed_rows_of_a_mixture_are_the_same_on_two_ranks(undisturbed, losses, mixed):
    settings = (
        *EXACT,
        "train.steps=3",
        "optimizer.warmup_steps=1",
        "data.packing=true",
        "data.whole_word_mask=true",
        mixed(1, 1),
    )
    assert losses(undisturbed(2, *settings)) == losses(undisturbed(1, *settings))


def test_a_list_of_one_corpus_is_that_corpus(undisturbed, train, losses, corpus_folder, tmp_path):
    train(2, "list", *SHORT, mixture([(corpus_folder, 0.3)]))
    folder = undisturbed(2, *SHORT)
    assert losses(tmp_path / "list") == losses(folder)
    assert digest(tmp_path / "list") == digest(folder)
    # To resume, either form will do.
    assert train(2, "list", *SHORT) == losses(folder)


def evaluated(on_ranks, run, *arguments):
    """Return what `lucid evaluate` prints of a run after the line that names the checkpoint."""
    first, *lines = on_ranks(1, "evaluate", run, *arguments).stdout.splitlines(keepends=True)
    assert first.startswith(f"checkpoint  {run}")
    return "".join(lines)


def test_each_corpus_is_evaluated_as_it_is_alone_and_the_mixture_by_weight(
    on_ranks, train, undisturbed, mixed, corpora, corpus_folder, tmp_path
):
    third = corpora("third")
    train(2, "run", *SHORT, "train.evaluation_samples=500", mixed(3, 1), f"train.evaluate_also=[{third}]")
    values = last_line(tmp_path / "run")
    folders = {"corpus": corpus_folder, "other": corpora("other"), "third": third}
    lines = evaluated(on_ranks, tmp_path / "run", "--samples", 500).splitlines()
    assert len(lines) == 4
    assert f"MLM loss {values['held_out_mlm_loss']:.3f}" in lines[0]
    for line, (name, folder) in zip(lines[1:], folders.items(), strict=True):
        assert line.startswith(f"held out ({name}): MLM loss {values[f'held_out_mlm_loss/{name}']:.3f}")
        alone = evaluated(on_ranks, tmp_path / "run", "--samples", 500, "--data", folder)
        assert alone.replace("held out:", f"held out ({name}):") == f"{line}\n"

    of_each = [{key: values[f"held_out_{key}/{name}"] for key in KEYS} for name in ("corpus", "other")]
    assert of_each[0]["samples"] != of_each[1]["samples"]
    masked = [share / each["samples"] * each["masked_tokens"] for share, each in zip((3, 1), of_each, strict=True)]
    for key in ("mlm_loss", "mlm_accuracy", "frequency_loss", "bigram_loss"):
        expected = sum(each[key] * weight for each, weight in zip(of_each, masked, strict=True)) / sum(masked)
        assert values[f"held_out_{key}"] == pytest.approx(expected, rel=1e-12)
    assert values["held_out_samples"] == sum(each["samples"] for each in of_each)
    assert values["held_out_masked_tokens"] == sum(each["masked_tokens"] for each in of_each)


KEYS = ("samples", "masked_tokens", "mlm_loss", "mlm_accuracy", "frequency_loss", "bigram_loss")


def test_a_run_on_one_corpus_can_be_evaluated_on_others_too(train, corpora, corpus_folder, tmp_path):
    train(1, "run", *SHORT, f"train.evaluate_also=[{corpora('other')}]", "train.evaluate_every=2")
    train(1, "alone", *SHORT, "train.evaluate_every=2")
    values, alone = last_line(tmp_path / "run"), last_line(tmp_path / "alone")
    del values["time"], alone["time"]
    assert values.items() >= alone.items()
    assert set(values) - set(alone) == {f"{key}/other" for key in alone if key.startswith("held_out")}


def test_the_last_evaluation_is_not_logged_twice_where_only_other_corpora_have_one(train, corpora, tmp_path):
    without = corpora("without", held_out=0)
    settings = (*SHORT, f"data.path={without}", f"train.evaluate_also=[{corpora('other')}]")
    for _ in range(2):
        train(1, "run", *settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "held_out_mlm_loss/other" in line] == [4]
    assert "held_out_mlm_loss" not in lines[-1]


def test_corpora_without_held_out_documents_are_left_out_of_the_evaluation(
    on_ranks, run_file, corpora, corpus_folder, tmp_path
):
    without = corpora("without", held_out=0)
    finished = on_ranks(2, "train", run_file, *SHORT, mixture([(without, 1), (corpus_folder, 1)]))
    assert finished.returncode == 0, finished.stdout
    remark = f"{without} has no held-out documents: the held-out loss leaves this part of the mixture out"
    assert remark in finished.stdout
    assert f"{without} was prepared with --held-out 0, {corpus_folder} with --held-out 0.1: a" in finished.stdout
    alone = evaluated(on_ranks, tmp_path / "run", "--samples", 12, "--data", corpus_folder)
    of_corpus = alone.replace("held out:", "held out (corpus):")
    assert f"{alone}{of_corpus}" in re.sub(r"^step \d+: ", "", finished.stdout, flags=re.MULTILINE)
    assert evaluated(on_ranks, tmp_path / "run", "--samples", 12) == f"{remark}\n{alone}{of_corpus}"
    values = last_line(tmp_path / "run")
    assert values["held_out_mlm_loss/corpus"] == values["held_out_mlm_loss"]
    advice = "prepare with a larger --held-out, or more text"
    finished = on_ranks(2, "train", run_file, "run_folder=new", f"data.path={without}", "train.evaluate_every=2")
    assert refused(finished).endswith(f"{without} has no held-out documents: {advice}")
    finished = on_ranks(1, "train", run_file, "run_folder=new", f"train.evaluate_also=[{without}]")
    assert refused(finished) == f"train.evaluate_also: {without} has no held-out documents: {advice}"


def test_corpora_that_may_have_other_splits_are_pointed_out(run_file, corpora, corpus_folder, text_file, tmp_path):
    tokenizer = corpus_folder / "tokenizer"
    prepare([text_file], tmp_path / "cleaned", tokenizer=tokenizer, held_out=0.1, drop_repeated_lines=5)
    also = f"train.evaluate_also=[{tmp_path / 'cleaned'}]"
    assert open_corpora(load(run_file, [also])).other_splits == (
        f"{corpus_folder} was prepared without --drop-repeated-lines, {tmp_path / 'cleaned'} with "
        "--drop-repeated-lines 5: a document of both may be trained on in one and held out in the other",
    )
    assert open_corpora(load(run_file, [f"data.path={tmp_path / 'cleaned'}"])).other_splits == ()


def test_a_corpus_with_one_held_out_document_is_left_out_of_the_evaluation_of_pairs(
    run_file, corpora, corpus_folder, tmp_path
):
    small = tmp_path / "small"
    (tmp_path / "small.txt").write_text("\n\n".join(made_up_text(9, seed=9).split("\n\n")[:3]), encoding="utf-8")
    prepare([tmp_path / "small.txt"], small, tokenizer=corpus_folder / "tokenizer")
    remark = f"{small} has one held-out document, too few for pairs (data.nsp): "

    def opened(*overrides):
        return open_corpora(load(run_file, overrides))

    alone, mixed_ = opened(f"data.path={small}"), opened(mixture([(small, 1), (corpus_folder, 1)]))
    assert (alone.held_out, alone.remark) == ((), f"{remark}there is no held-out loss")
    assert [corpus.name for corpus in mixed_.held_out] == ["corpus"]
    assert mixed_.remark == f"{remark}the held-out loss leaves this part of the mixture out"
    for override in (f"data.path={small}", "train.evaluate_every=2"), (f"train.evaluate_also=[{small}]",):
        with pytest.raises(LucidError, match=re.escape(f"{remark}prepare with a larger --held-out, or more text")):
            opened(*override)
    single = opened(f"data.path={small}", "data.nsp=false", "train.evaluate_every=2")
    assert (len(single.held_out), single.remark) == (1, None)


def test_other_weights_or_corpora_make_another_run_unless_accepted(train, on_ranks, run_file, mixed, corpora, tmp_path):
    train(1, "run", *SHORT, mixed(3, 1))
    overrides = ("train.steps=6", "train.log_every=2", "optimizer.warmup_steps=1", "train.evaluation_samples=12")
    sentence = refused(on_ranks(1, "train", run_file, *overrides, mixed(1, 1)))
    given = r"{path: \S+/corpus, weight: 1}, {path: \S+/other, weight: 1}"
    assert re.search(f"was trained with other corpora or weights than {given}: ", sentence)
    assert sentence.endswith("or set train.accept_changed to [corpus]")
    # Only the shares count.
    train(1, "run", *overrides, mixed(6, 2))
    accepting = ("train.steps=8", mixed(1, 1), "train.accept_changed=[corpus]")
    also = f"train.evaluate_also=[{corpora('third')}]"
    finished = on_ranks(1, "train", run_file, *overrides, *accepting, also)
    assert finished.returncode == 0, finished.stdout
    assert re.search(rf"data changed: path \[{given}\] instead of \[{given.replace('1', '[62]')}\]", finished.stdout)
    assert f"train changed: evaluate_also [{corpora('third')}] instead of [], steps 8 instead of 6" in finished.stdout


def test_corpora_of_different_tokenizers_are_refused_together(on_ranks, run_file, corpus_folder, text_file, tmp_path):
    prepare([text_file], tmp_path / "foreign", vocab_size=150)
    sentence = refused(on_ranks(2, "train", run_file, mixture([(corpus_folder, 1), (tmp_path / "foreign", 1)])))
    assert sentence == (
        f"{tmp_path}/foreign was prepared with another tokenizer than {corpus_folder}: prepare it again with lucid "
        f"prepare --tokenizer {corpus_folder}/tokenizer"
    )
    sentence = refused(on_ranks(2, "train", run_file, f"train.evaluate_also=[{tmp_path / 'foreign'}]"))
    assert "was prepared with another tokenizer than" in sentence


def test_an_altered_corpus_of_a_mixture_is_found_at_the_start(on_ranks, run_file, mixed, corpora, corpus_folder):
    altered = corpora("altered")
    with open(altered / "train-00000.tokens.npy", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\7")
    for override in (mixture([(corpus_folder, 1), (altered, 1)]), f"train.evaluate_also=[{altered}]"):
        sentence = refused(on_ranks(2, "train", run_file, override))
        assert f"{altered}/train-00000.tokens.npy was altered" in sentence
    assert Corpus.open(altered).token_count  # which only its checksums tell


def train_where_each_rank_has_its_own_corpus(config, folder):
    with chdir(folder / str(announced().rank)):
        return command(["train", config, "data.path=corpus"])


def test_hosts_with_different_copies_of_a_corpus_are_refused(rank_pool, run_file, corpora, corpus_folder, tmp_path):
    for rank, corpus in enumerate((corpus_folder, corpora("other"))):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / "corpus").symlink_to(corpus)
    results = rank_pool.run(2, train_where_each_rank_has_its_own_corpus, str(run_file), tmp_path)
    assert [result.value for result in results] == [2, 2]
    output = "".join(result.output for result in results)
    assert re.search(
        r"lucid: rank 1 on \S+ reads another corpus than the first rank, under the same path \(corpus\)", output
    )


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["data/de"], ["de"]),
        (["data/de", "data/en/"], ["de", "en"]),
        (["a/corpus", "b/corpus", "c"], ["corpus", "b/corpus", "c"]),
        (["x/a", "y/a", "/x/a", "/a"], ["a", "y/a", "x/a", "/a"]),
        (["y/x/a", "/a", "b/x/a", "/x/a"], ["a", "/a", "x/a", "/x/a"]),
    ],
)
def test_a_corpus_is_named_by_as_much_of_its_path_as_the_ones_before_it_leave(folders, names, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert corpus_names([Path(folder) for folder in folders]) == names
