"""Who computes which rows: each row once, the ranks about equally busy, and the losses those of one rank."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_run import SETTINGS
from texts import made_up_text

from lucid.data import Loader
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ConfigError
from lucid.preparation import prepare
from lucid.training.config import RunConfig, load
from lucid.training.corpora import open_mixture
from lucid.training.dealing import Dealer, deal
from lucid.training.log.window import Window
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
    ranks = deal(np.array(costs), [1.0] * size, most)
    rows = np.bincount(ranks, minlength=size)
    assert rows.sum() == len(costs)
    assert rows.min() >= 1
    assert rows.max() <= most
    loads = np.bincount(ranks, costs, minlength=size)
    if most >= len(costs):
        assert loads.max() <= sum(costs) / size + max(costs)


def test_equal_rows_are_dealt_equally():
    assert deal(np.full(7, 3), [1.0] * 3, most=3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_each_row_goes_to_one_rank_and_a_rank_has_the_same_rows_in_any_order_of_steps(config):
    batch = config.train.global_batch
    for size in (1, 2, 4, 8) if config.train.reduction == "exact" else (1, 2, 3, 7, 50):
        dealer = Dealer(config, open_mixture(config), size)
        for consumed in (3 * batch, 0):
            rows = [dealer.rows(rank, 0, consumed) for rank in range(size)]
            assert sorted(np.concatenate(rows).tolist()) == list(range(batch))
            assert all((np.diff(of_rank) > 0).all() for of_rank in rows)
            assert max(map(len, rows)) <= config.shared_by(size).local_batch
            again = Dealer(config, open_mixture(config), size)
            assert all((again.rows(rank, 0, consumed) == rows[rank]).all() for rank in range(size))


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
    rows = np.concatenate([dealer.rows(rank, 0, 0) for rank in range(4)])
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
            dealt[dealer.rows(rank, 0, consumed)] = rank
        means.append((busiest(dealt), busiest(np.arange(50) // 10)))
    by_length, by_place = np.mean(means, axis=0)
    assert by_length - 1 < 0.5 * (by_place - 1)


def test_work_is_dealt_in_proportion_to_speed():
    costs = np.random.default_rng(0).integers(50, 100, 64)
    loads = np.bincount(deal(costs, [1.0, 0.5, 0.25, 2.0], most=64), costs)
    np.testing.assert_allclose(loads / loads.sum(), np.array([4, 2, 1, 8]) / 15, atol=0.02)


@given(st.lists(st.integers(1, 1000), min_size=3, max_size=40), st.floats(1e-6, 1))
def test_a_rank_of_any_speed_has_a_row_and_none_has_too_many(costs, speed):
    most = len(costs) - 2
    rows = np.bincount(deal(np.array(costs), [1.0, speed, 1.0], most), minlength=3)
    assert rows.min() >= 1
    assert rows.max() <= max(most, -(-len(costs) // 3))


def by_speed(config: RunConfig, **data: int) -> Dealer:
    """The dealer of three ranks that share by speed."""
    config = config.model_copy(
        update={
            "train": config.train.model_copy(update={"balance": "speed"}),
            "data": config.data.model_copy(update=data),
        }
    )
    return Dealer(config, open_mixture(config), 3)


def shares(dealer: Dealer, step: int) -> list[int]:
    rows = [dealer.rows(rank, step, consumed=0) for rank in range(3)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(50))
    return [len(of_rank) for of_rank in rows]


@pytest.mark.parametrize("config", ["pairs", "packed", "two corpora"], indirect=True)
def test_a_slow_rank_gets_less_to_do(config):
    dealer = by_speed(config)
    for step in range(10, 101, 10):
        dealer.learn(step, np.array([3e9, 1e9, 3e9]), steps=10)
    first, second, third = shares(dealer, 200)
    assert second < 10
    assert abs(first - third) < 5


@pytest.mark.parametrize(("workers", "prefetch", "ahead"), [(0, 4, 0), (1, 4, 4), (3, 2, 3)])
@pytest.mark.parametrize("config", ["one segment"], indirect=True)
def test_speeds_count_from_the_first_step_on_that_no_loader_has_begun(config, workers, prefetch, ahead):
    dealer, equal = by_speed(config, workers=workers, prefetch=prefetch), by_speed(config)
    dealer.learn(30, np.array([1e9, 9e9, 1e9]), steps=1000)
    for step in range(28, 31 + ahead):
        assert shares(dealer, step) == shares(equal, step)
    fast = shares(dealer, 31 + ahead)
    assert fast[1] > 30
    dealer.learn(31, np.array([9e9, 1e9, 1e9]), steps=1000)
    assert shares(dealer, 31) == (shares(equal, 31) if ahead else fast)
    assert shares(dealer, 31 + ahead) == fast
    assert shares(dealer, 32 + ahead)[0] > 30


@pytest.mark.parametrize("config", ["pairs"], indirect=True)
def test_loaders_make_their_batches_before_speeds_count(config):
    """Every batch that a loader has begun when speeds come in is dealt as if they had not come."""
    made: list[tuple[int, list[int]]] = []
    dealer, equal = by_speed(config, workers=0, prefetch=1), by_speed(config)

    def make(step: int) -> int:
        made.append((step, shares(dealer, step)))
        return step

    batches = Loader(make, 0, 9, workers=0, prefetch=1)
    assert next(batches) == 0
    for step in range(1, 9):
        assert next(batches) == step
        dealer.learn(step, np.array([1e9, 1e9, 9e9]), steps=1000)
    assert [of_step == shares(equal, step) for step, of_step in made] == [True, True, *[False] * 7]


def with_made_up_speeds(speeds: list[float]) -> AbstractContextManager[None]:
    """Let every line of the log find these speeds."""
    return mock.patch.object(Window, "rank_speeds", property(lambda _: np.array(speeds), lambda *_: None), create=True)


@pytest.mark.parametrize(
    ("speeds", "settings"),
    [
        ([1.0, 4.0, 2.0], ("train.micro_batch=2",)),
        pytest.param([1.0, 9.0], ("train.micro_batch=4", "data.packing=true"), marks=pytest.mark.long),
        pytest.param([2.0, 0.01], ("train.micro_batch=1", "optimizer.sharded=true"), marks=pytest.mark.long),
    ],
)
def test_dealing_by_speed_gives_the_losses_of_one_rank(speeds, settings, train, undisturbed, losses, tmp_path):
    alone = [setting for setting in settings if setting.startswith("data")]
    one = losses(undisturbed(1, "train.steps=12", *alone))
    within = partial(with_made_up_speeds, speeds)
    several = train(len(speeds), "run", "train.steps=12", "train.balance=speed", *settings, within=within)
    assert list(several) == list(range(1, 13))
    np.testing.assert_allclose(list(several.values()), list(one.values()), rtol=1e-4)


def test_measured_speeds_give_the_losses_of_one_rank(train, undisturbed, losses, tmp_path):
    settings = ("train.steps=12", "train.balance=speed", "train.micro_batch=2")
    one = losses(undisturbed(1, "train.steps=12"))
    np.testing.assert_allclose(list(train(2, "run", *settings).values()), list(one.values()), rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("train.balance=speed",), "set train.micro_batch, the most that a rank computes at once"),
        (
            ("train.balance=speed", "train.reduction=exact", "train.micro_batch=2"),
            "train.reduction is exact, .* leave one of them out",
        ),
    ],
)
def test_dealing_by_speed_is_refused_where_it_cannot_be(run_file, settings, message):
    with pytest.raises(ConfigError, match=message):
        load(run_file, settings)


@pytest.mark.parametrize("config", ["pairs"], indirect=True)
def test_nothing_says_which_rank_has_had_a_row_by_speed(config):
    with pytest.raises(ConfigError, match=r"train\.balance=speed: its ranks had rows by the speeds"):
        by_speed(config).places(0, 0)


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
    places = Dealer(config, open_mixture(config), 4).places(0, 0)
    dealer = Dealer(config, open_mixture(config), 4)
    for rank in range(4):
        rows = dealer.rows(rank, 0, 0).tolist()
        assert [places[row] for row in rows] == [(rank, number // 3) for number in range(len(rows))]
