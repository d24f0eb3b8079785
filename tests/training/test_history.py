"""What a run's checkpoints say about the samples of its steps."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_checkpoints import snapshot, trained_model

from lucid.errors import CheckpointError, ConfigError
from lucid.training.checkpoints.checkpoint import STATE_FILE, Past, write_checkpoint
from lucid.training.config import load
from lucid.training.history import History

Save = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def save(run_file: Path, run: Path) -> Save:
    """A function that writes a checkpoint: its name, the samples before it, changed settings, and its past.

    Without a past, it is one of an earlier version.
    """
    trained = trained_model()

    def save(name: str, samples: int, *overrides: str, past: list[Past] | None = None, corpus: str = "abc") -> Path:
        whole, config = snapshot(trained), load(run_file, overrides).as_dict()
        state = replace(whole.state, step=int(name[5:]), samples_consumed=samples, config=config, past=past)
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_checkpoint(run / "checkpoints" / name, replace(whole, state=replace(state, corpus=corpus)))
        return run / "checkpoints" / name

    return save


def test_before_a_run_its_settings_say_all(run_file: Path) -> None:
    history = History.of(run_file, ["train.steps=7"])
    assert (history.last, history.checkpoints) == (7, {})
    assert [history.at(step).samples_before(step) for step in (1, 2, 7)] == [0, 12, 72]
    assert history.at(3).samples == range(84)
    assert history.at(3).place_of(83) == (7, 11)
    for step in (0, -1, 8):
        with pytest.raises(ConfigError, match=rf"the run has no step {step}: its steps are 1 to 7"):
            history.at(step)


def test_a_run_that_kept_its_settings_is_one_stretch(save: Save, run: Path) -> None:
    folders = {step: save(f"0001-{step:08d}", 12 * step, past=[]) for step in (10, 20)}
    history = History.of(run)
    assert history.checkpoints == folders
    assert [(stretch.first, stretch.last, stretch.consumed) for stretch in history.stretches] == [(1, 50, 0)]
    assert history.at(50).samples_before(50) == 49 * 12
    assert history.doubt(range(1, 51)) is None


def test_a_checkpoint_says_what_the_run_had_before_its_settings_changed(
    save: Save, run: Path, run_file: Path, tmp_path: Path
) -> None:
    configs = [load(run_file, overrides).as_dict() for overrides in ([], ["train.global_batch=20", "train.seed=3"])]
    past = [Past(7, 84, "abc", configs[0]), Past(15, 244, "other", configs[1])]
    save("0003-00000030", 424, f"data.path={tmp_path / 'moved'}", past=past)
    history = History.of(run)
    assert [(stretch.first, stretch.last, stretch.consumed, stretch.corpus) for stretch in history.stretches] == [
        (1, 7, 0, "abc"),
        (8, 15, 84, "other"),
        (16, 50, 244, "abc"),
    ]
    assert [history.at(step).config.train.seed for step in (7, 8, 15, 16)] == [0, 3, 3, 0]
    assert history.doubt(range(1, 51)) is None
    # A corpus is where it was last. Those of earlier stretches may be elsewhere, and can be named.
    assert history.at(7).config.data.path == tmp_path / "moved"
    assert history.at(8).config.data.path == load(run_file).data.path
    assert History.of(run, [f"data.path={tmp_path}"]).at(8).config.data.path == tmp_path


def test_what_an_earlier_version_did_not_note_is_doubted(save: Save, run: Path, run_file: Path) -> None:
    config = load(run_file, ["train.seed=3"]).as_dict()
    past = [Past(20, 240, "abc", config, known=False), Past(25, 300, "abc", config)]
    save("0001-00000010", 120)
    save("0003-00000030", 360, past=past)
    history = History.of(run)
    stretches = [(stretch.first, stretch.last, stretch.known) for stretch in history.stretches]
    assert stretches == [(1, 10, False), (11, 20, False), (21, 25, True), (26, 50, True)]
    assert [history.at(step).config.train.seed for step in (10, 11, 25, 26)] == [0, 3, 3, 0]
    doubt = "an earlier version of lucid trained steps 1 to 20 and did not note changes of settings"
    assert (history.doubt(range(5, 15)) or "").startswith(doubt)
    assert (history.doubt(range(20, 30)) or "").startswith(doubt.replace("1 to", "11 to"))
    assert history.doubt(range(21, 51)) is None


def test_the_settings_of_a_run_that_has_begun_have_to_be_its_own(save: Save, run: Path, run_file: Path) -> None:
    past = [Past(10, 120, "abc", load(run_file, ["train.seed=3"]).as_dict())]
    save("0001-00000020", 240, past=past)
    folder = f"run_folder={run}"
    history = History.of(run_file, [folder, "train.steps=60", "data.workers=0"])
    assert history.last == 60
    assert [(stretch.first, stretch.last) for stretch in history.stretches] == [(1, 10), (11, 60)]
    assert history.at(11).corpus == "abc"
    for changed in ("train.seed=4", "train.global_batch=20", "data.sequence_length=16", "data.packing=true"):
        name = re.escape(changed.partition("=")[0])
        message = rf"{run} has trained with other settings than those of {run_file} \({name} is .* there, and "
        with pytest.raises(ConfigError, match=message):
            History.of(run_file, [folder, changed])


def test_steps_of_an_earlier_version_have_the_settings_of_the_checkpoint_after_them(save: Save, run: Path) -> None:
    save("0001-00000010", 120)
    save("0002-00000020", 320, "train.global_batch=20", "train.seed=3")
    save("0003-00000030", 520, "train.global_batch=20", "train.micro_batch=5", "train.steps=40")
    history = History.of(run)
    assert [(stretch.first, stretch.last, stretch.consumed) for stretch in history.stretches] == [
        (1, 10, 0),
        (11, 20, 120),
        (21, 30, 320),
        (31, 40, 520),
    ]
    assert [history.at(step).config.train.seed for step in (10, 11, 20, 21)] == [0, 3, 3, 0]
    assert history.at(20).place_of(319) == (20, 19)


def test_where_the_batch_changed_between_checkpoints_nothing_is_claimed(save: Save, run: Path) -> None:
    save("0001-00000010", 120)
    save("0003-00000030", 500, "train.global_batch=20")  # 12 a step, then 20
    save("0003-00000040", 700, "train.global_batch=20")
    history = History.of(run)
    assert history.at(31).samples_before(31) == 500
    assert history.at(10).samples_before(10) == 108
    for step in (11, 30):
        with pytest.raises(ConfigError, match=r"not known: the global batch changed somewhere in steps 11 to 30"):
            history.at(step)


def test_a_checkpoint_that_no_newer_one_continues_does_not_count(save: Save, run: Path) -> None:
    save("0001-00000010", 120)
    save("0001-00000030", 999)  # of a stale process
    save("0002-00000020", 240)
    history = History.of(run)
    assert list(history.checkpoints) == [20, 10]
    assert history.at(30).samples_before(30) == 29 * 12


def test_damaged_checkpoints_are_passed_over_and_named(save: Save, run: Path) -> None:
    save("0001-00000010", 120)
    damaged = save("0001-00000020", 240)
    (damaged / STATE_FILE).write_text("{}")
    history = History.of(run)
    assert list(history.checkpoints) == [10]
    assert str(damaged) in history.messages[0]
    (run / "checkpoints" / "0001-00000010" / STATE_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used .*state\.json was altered"):
        History.of(run)


def test_of_a_run_only_the_place_of_its_corpus_can_be_given_anew(save: Save, run: Path, tmp_path: Path) -> None:
    save("0001-00000010", 120)
    history = History.of(run, [f"data.path={tmp_path}"])
    assert history.at(1).config.data.path == tmp_path
    with pytest.raises(ConfigError, match=r"^train\.seed=3: .* has run with its own settings"):
        History.of(run, [f"data.path={tmp_path}", "train.seed=3"])
    with pytest.raises(ConfigError, match=r"the command line: data\.path"):
        History.of(run, ["data.path=3"])


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist: give the folder of a run"):
        History.of(run)
    run.mkdir()
    with pytest.raises(ConfigError, match="neither the folder of a run nor a file of settings"):
        History.of(run)
    (run / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet: give the YAML file"):
        History.of(run)


def test_the_checkpoint_for_losses_is_the_newest_from_before_the_step(save: Save, run: Path) -> None:
    for step in (10, 20, 30):
        save(f"0001-{step:08d}", 12 * step)
    history = History.of(run)
    assert [history.checkpoint_for(step) for step in (1, 10, 11, 20, 21, 50)] == [10, 10, 10, 10, 20, 30]
    assert history.checkpoint_for(11, 30) == 30
    with pytest.raises(ConfigError, match=r"there is no checkpoint of step 15, but of 10, 20, 30"):
        history.checkpoint_for(11, 15)
