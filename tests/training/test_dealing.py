"""Who computes which rows: each row once, the ranks about equally busy, and the losses those of one rank."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_run import SETTINGS
from texts import made_up_text

from lucid.distributed.communicators.single import SingleCommunicator
from lucid.preparation import prepare
from lucid.training.config import RunConfig, load
from lucid.training.corpora import open_mixture
from lucid.training.dealing import Dealer, deal
from lucid.training.setup import open_run
from lucid.training.trainer import Trainer

SHORT = ("train.steps=4", "optimizer.warmup_steps=1", "train.evaluation_samples=4")


@pytest.fixture(scope="session")
def other(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of documents of other lengths, with the tokenizer of the corpus of all tests."""
    folder = tmp_path_factory.mktemp("dealt")
    (folder / "text.txt").write_text(made_up_text(40, seed=5, longest=6), encoding="utf-8")
    prepare([folder / "text.txt"], folder / "corpus", tokenizer=corpus_folder / "tokenizer", held_out=0.2)
    return folder / "corpus"


@pytest.fixture(params=["pairs", "one segment", "packed", "two corpora", "exact"])
def config(request: pytest.FixtureRequest, corpus_folder: Path, other: Path, tmp_path: Path) -> RunConfig:
    two = [{"path": str(other), "weight": 1}, {"path": str(corpus_folder), "weight": 2}]
    data = {"path": two if request.param == "two corpora" else str(corpus_folder), "sequence_length": 32}
    data |= {
        "short_sequence_probability": 0.5,
        "packing": request.param == "packed",
        "nsp": request.param != "one segment",
    }
    train = {**SETTINGS["train"], "micro_batch": 3}
    train |= {"global_batch": 48, "reduction": "exact"} if request.param == "exact" else {"global_batch": 50}
    settings = {**SETTINGS, "data": data, "train": train, "run_folder": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return load(tmp_path / "run.yaml")


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=60), st.data())
def test_no_rank_has_much_more_than_the_mean_none_is_idle_and_none_has_too_many_rows(costs, data):
    size = data.draw(st.integers(1, len(costs)))
    most = data.draw(st.integers(-(-len(costs) // size), len(costs)))
    ranks = deal(np.array(costs), size, most)
    rows = np.bincount(ranks, minlength=size)
    assert rows.sum() == len(costs)
    assert rows.min() >= 1
    assert rows.max() <= most
    loads = np.bincount(ranks, costs, minlength=size)
    if most >= len(costs):
        assert loads.max() <= sum(costs) / size + max(costs)


def test_equal_rows_are_dealt_equally():
    assert deal(np.full(7, 3), 3, most=3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_each_row_goes_to_one_rank_and_a_rank_has_the_same_rows_in_any_order_of_steps(config):
    batch = config.train.global_batch
    for size in (1, 2, 4, 8) if config.train.reduction == "exact" else (1, 2, 3, 7, 50):
        dealer = Dealer(config, open_mixture(config), size)
        for consumed in (3 * batch, 0):
            rows = [dealer.rows(rank, consumed) for rank in range(size)]
            assert sorted(np.concatenate(rows).tolist()) == list(range(batch))
            assert all((np.diff(of_rank) > 0).all() for of_rank in rows)
            assert max(map(len, rows)) <= config.local_batch(size)
            again = Dealer(config, open_mixture(config), size)
            assert all((again.rows(rank, consumed) == rows[rank]).all() for rank in range(size))


def test_the_batches_of_the_ranks_are_the_rows_of_one_rank(config):
    run = open_run(config, SingleCommunicator())
    whole = list(Trainer(run).batches(3))
    size = 8 if config.train.reduction == "exact" else 3
    parts = []
    for rank in range(size):
        run.communicator = SimpleNamespace(rank=rank, size=size, seconds_waited=0.0)  # type: ignore[assignment]
        parts.append(list(Trainer(run).batches(3)))
    for step, one in enumerate(whole):
        local = [of_rank[step].batch for of_rank in parts]
        order = np.argsort(np.concatenate([batch.samples for batch in local]))
        for name in ("input_ids", "sequence_ids", "mlm_labels"):
            together = np.concatenate([getattr(batch, name) for batch in local])
            assert (together[order] == getattr(one.batch, name)).all()
        assert sum(of_rank[step].masked_tokens for of_rank in parts) == one.masked_tokens
        assert sum(of_rank[step].pairs for of_rank in parts) == one.pairs


@pytest.mark.parametrize("config", ["exact", "packed"], indirect=True)
def test_the_exact_reduction_and_packing_have_adjacent_rows_on_each_rank(config):
    dealer = Dealer(config, open_mixture(config), 4)
    rows = np.concatenate([dealer.rows(rank, 0) for rank in range(4)])
    assert rows.tolist() == list(range(config.train.global_batch))


@pytest.mark.parametrize("config", ["pairs", "one segment", "two corpora"], indirect=True)
def test_ranks_have_more_equal_numbers_of_tokens_than_by_place(config):
    def busiest(ranks: np.ndarray) -> float:
        tokens = np.bincount(ranks, lengths)
        return tokens.max() / tokens.mean()

    size, mixture = 5, open_mixture(config)
    dealer, means = Dealer(config, mixture, size), []
    for consumed in range(0, 500, 50):
        lengths = mixture.batch(consumed, range(50)).attention_mask.sum(axis=1)
        dealt = np.empty(50, np.int64)
        for rank in range(size):
            dealt[dealer.rows(rank, consumed)] = rank
        means.append((busiest(dealt), busiest(np.arange(50) // 10)))
    by_length, by_place = np.mean(means, axis=0)
    assert by_length - 1 < 0.5 * (by_place - 1)


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        (3, ("train.global_batch=8",)),
        (4, ("train.global_batch=10", "train.micro_batch=1")),
        (3, ("train.global_batch=11", "mixture", "train.micro_batch=2", "train.evaluate_every=2")),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                (3, ("train.global_batch=8", "data.nsp=false", "train.recompute=layer")),
                (4, ("train.global_batch=11", "optimizer.sharded=true", "optimizer.name=lamb")),
                (3, ("train.global_batch=8", "data.packing=true", "train.micro_batch=2")),
                (2, ("train.global_batch=5", "distributed.backend=mpi", "data.workers=0")),
                (4, ("train.global_batch=4",)),
            )
        ),
    ],
    ids=lambda value: value if isinstance(value, int) else "-".join(value),
)
def test_ranks_that_do_not_divide_the_batch_give_the_losses_of_one(
    ranks, settings, undisturbed, losses, corpus_folder, other
):
    two = f"data.path=[{{path: {other}, weight: 1}}, {{path: {corpus_folder}, weight: 2}}]"
    settings = tuple(two if setting == "mixture" else setting for setting in settings)
    alone = [setting for setting in settings if not setting.startswith(("train.micro", "distributed", "optimizer.sh"))]
    one, several = (losses(undisturbed(*given)) for given in ((1, *SHORT, *alone), (ranks, *SHORT, *settings)))
    assert list(one) == list(several) == [1, 2, 3, 4]
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=1e-4)


@pytest.mark.parametrize("config", ["pairs"], indirect=True)
def test_places_name_the_micro_batches(config):
    places = Dealer(config, open_mixture(config), 4).places(0)
    dealer = Dealer(config, open_mixture(config), 4)
    for rank in range(4):
        rows = dealer.rows(rank, 0).tolist()
        assert [places[row] for row in rows] == [(rank, number // 3) for number in range(len(rows))]
