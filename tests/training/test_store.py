"""Fencing by name: each attempt writes under its own number, and the latest attempt has the newest checkpoint."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import threading

import pytest
from small_checkpoints import snapshot, trained_model

from lucid.errors import CheckpointError
from lucid.training.checkpoints.best import Best, best_after
from lucid.training.checkpoints.store import CheckpointStore

SAY_WHY = r"checkpoint .*0001-00000002 could not be written: {}; the newest whole one is .*0001-00000001$"


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture(scope="module")
def trained():
    return trained_model()


@pytest.fixture
def save(trained):
    """A function that saves a checkpoint of a step and returns its folder; `best` is what is noted in it."""

    def save(attempt, step, best=None):
        attempt.save(snapshot(trained, step, best=best))
        return attempt.newest

    return save


def names(store):
    return sorted(path.name for path in store.folder.iterdir() if not path.name.startswith(".incarnation-"))


def test_a_new_store_has_no_checkpoint(store):
    assert store.newest() == (None, [])
    assert not store.folder.exists()


def test_the_newest_checkpoints_are_kept(store, save):
    attempt = store.claim(2, None)
    for step in (1, 2, 10):
        save(attempt, step)
    assert names(store) == ["0001-00000002", "0001-00000010"]
    assert store.newest()[0].state.step == 10


def test_the_latest_attempt_is_the_newest_whatever_the_step(store, save):
    save(store.claim(9, None), 1000)
    save(store.claim(9, None), 600)
    assert store.newest()[0].folder.name == "0002-00000600"


def test_multiples_of_every_so_many_steps_are_kept_besides_the_newest(store, save):
    attempt = store.claim(1, None, every=20)
    for step in (10, 20, 30, 40, 50):
        save(attempt, step)
    assert names(store) == ["0001-00000020", "0001-00000040", "0001-00000050"]
    following = store.claim(1, attempt.newest, every=20)
    save(attempt, 60)  # it belongs to nobody any more
    save(following, 70)
    assert names(store) == ["0001-00000020", "0001-00000040", "0002-00000070"]


def evaluated(losses):
    """Return what each of these steps notes, if it has this held-out loss, by step."""
    best, noted = None, {}
    for step, loss in losses.items():
        best = best_after(best, step, loss, "samples")
        noted[step] = best
    return noted


def test_the_best_is_kept_until_there_is_a_better_one(store, save):
    attempt = store.claim(1, None, best=True)
    kept = []
    for step, best in evaluated({1: 5.0, 2: 4.0, 3: 4.5, 4: 4.0, 5: float("nan"), 6: 3.0, 7: 6.0}).items():
        save(attempt, step, best)
        kept.append(([int(name[-1]) for name in names(store)], store.best().name))
    steps = [[1], [2], [2, 3], [2, 4], [2, 5], [6], [6, 7]]
    bests = [f"0001-0000000{step}" for step in (1, 2, 2, 2, 2, 6, 6)]
    assert kept == list(zip(steps, bests, strict=True))


@pytest.mark.parametrize(("best_of", "stray"), [("first start", 450), ("second start", 450), ("second start", 410)])
def test_a_stale_process_neither_hides_nor_removes_the_best(store, save, best_of, stray):
    """It writes a better one after the second start has saved for the last time, and before the third one saves."""
    noted = evaluated({400: 5.0, 410: 4.0, 500: 5.0})
    stale = store.claim(1, None, best=True)
    start = save(stale, 400, noted[400])
    if best_of == "first start":
        best = start = save(stale, 410, noted[410])
    second = store.claim(1, start, best=True)
    if best_of == "second start":
        best = save(second, 410, noted[410])
    resumed = save(second, 500, noted[500])
    save(stale, stray, Best(stray, 3.0, stray, 0, "samples"))
    assert store.best() == best
    save(store.claim(1, resumed, best=True), 600, noted[500])
    assert best.exists()
    assert store.best() == best


def test_the_best_that_could_not_be_written_leaves_the_one_before(store, save):
    attempt = store.claim(1, None, best=True)
    noted = evaluated({1: 5.0, 2: 4.0, 3: 6.0})
    save(attempt, 1, noted[1])
    (store.folder / ".partial-0001-00000002").write_text("in the way")
    with pytest.raises(CheckpointError, match="File exists"):
        save(attempt, 2, noted[2])
    save(attempt, 3, noted[3])
    assert names(store) == [".partial-0001-00000002", "0001-00000001", "0001-00000003"]
    with pytest.raises(CheckpointError, match=r"of step 2, is not there: the best one that is there is .*00000001$"):
        store.best()


def test_the_best_stays_while_losses_on_other_samples_are_sought(store, save):
    attempt = store.claim(1, None, best=True)
    for step, best in ((1, Best(1, 4.0, 1, 0, "samples")), (2, None), (3, Best(3, 9.0, 3, 0, "others"))):
        save(attempt, step, best)
        assert names(store) == [["0001-00000001"], ["0001-00000001", "0001-00000002"], ["0001-00000003"]][step - 1]


def test_a_run_that_has_not_evaluated_has_no_best(store, save):
    save(store.claim(1, None), 1)
    with pytest.raises(CheckpointError, match="no checkpoint with a held-out loss yet"):
        store.best()


def test_numbers_are_compared_as_numbers(store, save):
    store.folder.mkdir()
    (store.folder / ".incarnation-9998").mkdir()
    first, second = (store.claim(9, None) for _ in range(2))
    for attempt in (first, second):
        save(attempt, 5)
    assert store.newest()[0].folder.name == "10000-00000005"


def test_each_attempt_has_its_own_number_even_if_it_never_saves(store, save):
    assert [store.claim(2, None).number for _ in range(3)] == [1, 2, 3]
    save(store.claim(2, None), 1)
    shutil.rmtree(store.folder / ".incarnation-0004")
    assert store.claim(2, None).number == 5


def test_simultaneous_attempts_never_share_a_number(store):
    together, numbers = threading.Barrier(8), []

    def start():
        together.wait()
        numbers.append(store.claim(2, None).number)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(numbers)) == 8


def test_an_attempt_whose_number_was_taken_and_removed_takes_a_later_one(store, save, monkeypatch):
    """Between its look at the folder and its claim, two others start, and the second removes the first one's marker."""

    def look_before_the_others_come(folder):
        monkeypatch.undo()
        store.claim(2, None)
        save(store.claim(2, None), 1)
        assert not (store.folder / ".incarnation-0001").exists()
        return 0

    monkeypatch.setattr("lucid.training.checkpoints.store._latest_attempt", look_before_the_others_come)
    assert store.claim(2, None).number == 3


def test_a_stale_process_neither_replaces_nor_hides_nor_removes_newer_checkpoints(store, save):
    orphan = store.claim(1, None)
    start = save(orphan, 500)
    successor = store.claim(1, start)
    for step in (600, 700):
        save(successor, step)
        save(orphan, step)
        save(orphan, step + 10_000)
        newest, problems = store.newest()
        assert (newest.folder.name, problems) == (f"0002-{step:08d}", [])
    save(successor, 800)
    assert names(store) == ["0002-00000800"]


def test_checkpoints_of_a_stale_process_do_not_displace_the_resumed_one(store, save):
    orphan = store.claim(9, None)
    successor = store.claim(2, save(orphan, 500))
    save(orphan, 1000)
    save(successor, 600)
    assert names(store) == ["0001-00000500", "0002-00000600"]


def test_a_damaged_checkpoint_does_not_displace_a_whole_one(store, save):
    first = store.claim(9, None)
    save(first, 500)
    (save(first, 1000) / "state.json").unlink()
    checkpoint, (problem,) = store.newest()
    assert "state.json is missing" in problem
    save(store.claim(2, checkpoint.folder), 600)
    assert names(store) == ["0001-00000500", "0002-00000600"]


def test_leftovers_of_older_attempts_are_removed(store, save):
    for _ in range(2):
        store.claim(2, None)
    (store.folder / ".partial-0001-00000007").mkdir()
    (store.folder / ".partial-0009-00000007").mkdir()
    (store.folder / "notes").mkdir()
    save(store.claim(2, None), 1)
    left = {".incarnation-0010", ".partial-0009-00000007", "0010-00000001", "notes"}
    assert {path.name for path in store.folder.iterdir()} - left == set()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(store, save):
    attempt = store.claim(2, None)
    save(attempt, 1)
    path = save(attempt, 2) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    checkpoint, (problem,) = store.newest()
    assert checkpoint.state.step == 1
    assert "model.safetensors was altered" in problem


def test_a_run_does_not_start_over_when_no_checkpoint_can_be_used(store, save):
    attempt = store.claim(2, None)
    for step in (1, 2):
        (save(attempt, step) / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used .*state\.json is missing"):
        store.newest()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB; a checkpoint of these tests takes about 30."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_says_so_and_leaves_the_checkpoint_before(small_disk, save):
    store = CheckpointStore(small_disk / "checkpoints")
    attempt = store.claim(2, None)
    save(attempt, 1)
    filling = small_disk / "filling"
    room = shutil.disk_usage(small_disk).free
    filling.write_bytes(bytes(room - 8192))
    with pytest.raises(CheckpointError, match=SAY_WHY.format("No space left on device")):
        save(attempt, 2)
    assert names(store) == ["0001-00000001"]
    assert store.newest()[0].state.step == 1
    filling.unlink()
    save(attempt, 3)
    assert store.newest()[0].state.step == 3


def test_a_file_that_may_not_grow_says_so_and_leaves_the_checkpoint_before(store, save):
    attempt = store.claim(2, None)
    save(attempt, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(CheckpointError, match=SAY_WHY.format(os.strerror(errno.EFBIG))):
            save(attempt, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert names(store) == ["0001-00000001"]
    assert store.newest()[0].state.step == 1


def test_a_disk_that_may_not_be_written_says_so_and_leaves_the_checkpoint_before(small_disk, save):
    store = CheckpointStore(small_disk / "checkpoints")
    attempt = store.claim(2, None)
    first = save(attempt, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=SAY_WHY.format("Read-only file system")):
        save(attempt, 2)
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be written \(Read-only file system\)"):
        store.claim(2, first)
    assert store.newest()[0].folder == first


def test_a_file_in_the_way_is_reported_and_left_alone(store, save):
    attempt = store.claim(2, None)
    save(attempt, 1)
    (store.folder / ".partial-0001-00000002").write_text("in the way")
    with pytest.raises(CheckpointError, match=SAY_WHY.format("File exists")):
        save(attempt, 2)
    assert store.newest()[0].state.step == 1


def test_a_failure_without_a_checkpoint_before_says_that_there_is_none(store, save):
    attempt = store.claim(2, None)
    (store.folder / ".partial-0001-00000002").write_text("in the way")
    with pytest.raises(CheckpointError, match="File exists; there is none before it"):
        save(attempt, 2)
