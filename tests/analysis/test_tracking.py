"""The log of a run in a tracking service: what is sent, once, after restarts and faults; and the real libraries."""

import json
import os
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from made_up_runs import evaluation, line

from lucid.analysis.tracking import sending as sending_module
from lucid.analysis.tracking.sending import Sender, follow, sending
from lucid.analysis.tracking.services import Mlflow, ServiceError, Trackio, service_named
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.errors import ConfigError
from lucid.training import run as train
from lucid.training.attempts import ATTEMPTS_FILE
from lucid.training.config import load
from lucid.training.log.tags import tag_of


@dataclass
class Recording:
    """A service that records what it is sent, and cannot be reached while `is_down`."""

    is_down: bool = False
    opened: list = field(default_factory=list)
    settings: list = field(default_factory=list)
    lines: list = field(default_factory=list)
    closed: list = field(default_factory=list)

    def _reach(self):
        if self.is_down:
            raise ServiceError("the service is down")

    def open(self, folder, project, name, run):
        self._reach()
        self.opened.append((project, name, run))
        return run or "new-1"

    def configure(self, settings, attempt):
        self.settings.append((attempt, settings))

    def send(self, entries):
        for entry in entries:
            self._reach()
            self.lines.append((entry.get("attempt"), entry["step"]))
            yield 1

    def close(self, how):
        self._reach()
        self.closed.append(how)


@pytest.fixture
def ends(monkeypatch):
    """A list whose last item is how the run has ended."""
    found = [None]
    monkeypatch.setattr(sending_module, "_end_of", lambda folder: found[-1])
    return found


@pytest.fixture
def folder(tmp_path, ends):
    """The folder of a run without lines."""
    write(tmp_path)
    return tmp_path


def write(folder, *entries):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def send(folder, service, said=None):
    sender = Sender(folder, service, "recording", "mine", "first", (said if said is not None else []).append)
    with sending(sender, folder):
        return sender.send_new()


def test_only_what_is_new_is_sent_and_nothing_twice(folder):
    service = Recording()
    first = [line(10), evaluation(10, 7.0)]
    write(folder, *first)
    assert send(folder, service) == (2, None)
    assert send(folder, service) == (0, None)
    assert service.opened == [("mine", "first", None)]  # nothing new: the service is left alone
    write(folder, *first, evaluation(20, 6.5), line(20))
    assert send(folder, service) == (2, None)
    assert service.opened[1:] == [("mine", "first", "new-1")]
    assert service.lines == [(1, 10), (1, 10), (1, 20), (1, 20)]


def test_steps_that_a_new_attempt_takes_again_are_sent_again_and_said(folder):
    service, said = Recording(), []
    write(folder, line(10), line(20), line(30))
    send(folder, service)
    write(folder, line(10), line(20, attempt=3))  # two of its lines were dropped
    send(folder, service, said)
    write(folder, line(10), line(20, attempt=3), line(30, attempt=3))
    send(folder, service, said)
    assert service.lines == [(1, 10), (1, 20), (1, 30), (3, 20), (3, 30)]
    assert [sentence.partition(":")[0] for sentence in said] == ["attempt 3 has taken steps up to 30 again"]


def test_lines_of_an_earlier_version_have_no_attempt(folder):
    service = Recording()
    old = [{"step": step, "mlm_loss": 7.0} for step in (1, 2)]
    write(folder, old[0])
    send(folder, service)
    write(folder, *old, line(3, attempt=2))
    send(folder, service)
    assert service.lines == [(None, 1), (None, 2), (2, 3)]


@pytest.mark.parametrize("count", [3, 4], ids=["within-a-block", "between-blocks"])
def test_a_service_that_fails_gets_the_rest_later(count, folder, monkeypatch):
    monkeypatch.setattr(sending_module, "_LINES", 2)
    service = Recording()
    write(folder, *(line(step) for step in range(1, 6)))
    taken, service.send = service.send, failing_after(service, count)
    with pytest.raises(ServiceError):
        send(folder, service)
    service.is_down, service.send = False, taken
    assert send(folder, service) == (5 - count, None)
    assert [step for _, step in service.lines] == [1, 2, 3, 4, 5]


def failing_after(service, count):
    """The method `send` of a service that is down once it has so many lines."""
    taken = service.send

    def send(entries):
        for entry in entries:
            service.is_down = len(service.lines) >= count
            yield from taken([entry])

    return send


def test_mlflow_is_sent_whole_lines_and_those_of_a_failed_request_once_more(folder, monkeypatch):
    """A request has one line or several, but for a line that is longer than a request."""
    pytest.importorskip("mlflow")
    requests = []

    def log_batch(run, metrics):
        if len(requests) == 2 and not service.has_failed:
            service.has_failed = True
            raise OSError("no answer")
        requests.append([metric.step for metric in metrics])

    service = Mlflow(SimpleNamespace())
    service.has_failed, service._METRICS = False, 5
    service._client = SimpleNamespace(log_batch=log_batch)
    monkeypatch.setattr(service, "open", lambda *_: "id")
    monkeypatch.setattr(service, "close", lambda how: None)
    short, long = ({"time": 1.0, "attempt": 1} | {f"key{n}": 0.5 for n in range(count)} for count in (1, 6))
    write(folder, *({"step": step} | (long if step == 4 else short) for step in range(1, 6)))
    with pytest.raises(ServiceError, match="no answer"):
        send(folder, service)
    assert send(folder, service) == (2, None)
    assert [set(request) for request in requests] == [{1, 2}, {3}, {4}, {4}, {5}]


def test_following_ends_with_the_run_and_bears_a_service_that_is_down(folder, ends):
    service, said = Recording(is_down=True), []
    write(folder, line(10))

    def pause():
        pauses = len(ends)
        service.is_down = pauses == 1
        ends.append({1: None, 2: "stopped", 3: None, 4: "finished"}[pauses])
        write(folder, *(line(10 * step) for step in range(1, pauses + 1)))

    sender = Sender(folder, service, "recording", "mine", "first", said.append)
    with sending(sender, folder):
        follow(sender, pause, said.append)
    assert [step for _, step in service.lines] == [10, 20, 30, 40]
    assert said == [
        "the service is down; trying again",
        "2 lines sent",
        "the run has been stopped: waiting for it to go on",
        "1 line sent",
        "1 line sent",
    ]
    assert service.closed == ["finished"]


def test_a_signal_while_following_closes_the_service(folder):
    service = Recording()
    write(folder, line(10))
    sender = Sender(folder, service, "recording", "mine", "first", [].append)

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), sending(sender, folder):
        follow(sender, interrupted, [].append)
    assert service.closed == [None]


def test_a_record_that_is_damaged_or_of_another_project_is_refused(folder):
    write(folder, line(10))
    send(folder, Recording())
    with pytest.raises(ConfigError, match="was sent to the project mine before"):
        Sender(folder, Recording(), "recording", "other", "first", [].append)
    (folder / "sent-recording.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"sent-recording.json, which says what was sent, cannot be read"):
        send(folder, Recording())


def test_a_run_that_began_anew_is_refused_and_one_that_dropped_lines_is_not(folder, monkeypatch):
    service, noted = Recording(), []
    monkeypatch.setattr(sending_module, "read_attempts", lambda folder: [SimpleNamespace(number=n) for n in noted])
    write(folder, line(10), line(20, attempt=2))
    send(folder, service)
    write(folder, line(10))  # attempt 3 has begun: it dropped the lines of attempt 2, and has none yet
    noted += [1, 2, 3]
    assert send(folder, service) == (0, None)
    noted.append(1)
    with pytest.raises(ConfigError, match=r"begun anew and is at attempt 1; remove it to send the whole log"):
        send(folder, service)
    assert service.lines == [(1, 10), (2, 20)]


def test_a_password_in_the_address_of_a_service_is_not_printed(folder):
    def refuse(**_):
        raise OSError("no answer from https://me:secret@host/a@b, tried https://host/c")

    with pytest.raises(ServiceError, match=r"no answer from https://\*\*\*@host/a@b, tried https://host/c"):
        Trackio(SimpleNamespace(init=refuse)).open(folder, "mine", "first", None)


def test_two_processes_do_not_send_one_run(folder):
    write(folder, line(10))
    sender = Sender(folder, Recording(), "recording", "mine", "first", [].append)
    with (
        sending(sender, folder),
        pytest.raises(ConfigError, match="another process sends the log"),
        sending(sender, folder),
    ):
        pass


def test_a_real_run_has_finished_or_not_also_if_an_earlier_version_trained_it(run_file, tmp_path):
    stop, folder, service = StopRequest(), tmp_path / "run", Recording()
    stop.requested = True
    train(load(run_file, ["train.steps=6"]), SingleCommunicator(), stop)
    assert send(folder, service) == (0, "stopped")
    train(load(run_file, ["train.steps=6"]), SingleCommunicator(), StopRequest())
    lines, how = send(folder, service)
    assert (lines > 5, how, service.closed) == (True, "finished", ["finished"])
    assert [(attempt, settings["train.steps"]) for attempt, settings in service.settings] == [(2, 6)]
    (folder / ATTEMPTS_FILE).unlink()
    assert send(folder, Recording()) == (0, "finished")


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("mlm_loss", "loss/mlm_loss"),
        ("held_out_mlm_loss/news", "loss/held_out_mlm_loss/news"),
        ("held_out_perplexity", "loss/held_out_perplexity"),
        ("nsp_accuracy", "accuracy/nsp_accuracy"),
        ("tokens_per_second", "speed/tokens_per_second"),
        ("communication_wait_max", "waits/communication_wait_max"),
        ("slowest_rank", "waits/slowest_rank"),
        ("gradient_norm", "gradient_norm/all"),
        ("gradient_norm/heads", "gradient_norm/heads"),
        ("update_ratio/heads", "update_ratio/heads"),
        ("probe/topics", "probe/topics"),
        ("tokens", "progress/tokens"),
        ("learning_rate", "progress/learning_rate"),
    ],
)
def test_names_are_in_groups(key, tag):
    assert tag_of(key) == tag


TIMES = [line(10, time=1.7e9), evaluation(20, 7.0) | {"time": 1.7e9 + 5}, line(20, time=1.7e9 + 9, nsp_loss=None)]


def test_mlflow_has_each_number_once(folder, ends, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{folder}/store")
    write(folder, *TIMES[:1])
    send(folder, service_named("mlflow"))
    write(folder, *TIMES, line(20, attempt=2, time=1.7e9 + 99, mlm_loss=5.5))
    ends.append("finished")
    send(folder, service_named("mlflow"))
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    history = client.get_metric_history(found.info.run_id, "loss/mlm_loss")
    assert sorted((value.step, value.value, value.timestamp) for value in history) == [
        (10, 7.0, 1_700_000_000_000),
        (20, 5.5, 1_700_000_099_000),
        (20, 6.0, 1_700_000_009_000),
    ]
    assert (found.info.run_name, found.info.status) == ("first", "FINISHED")
    assert found.data.metrics["loss/held_out_mlm_loss"] == 7.0


def test_mlflow_settings_that_change_have_the_number_of_their_attempt(folder, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{folder}/store")
    service = service_named("mlflow")
    run = service.open(folder, "mine", "first", None)
    service.configure({"train.steps": 10, "train.seed": 1}, 1)
    service.configure({"train.steps": 20, "train.seed": 1}, 2)
    found = mlflow.MlflowClient().get_run(run).data.params
    assert found == {"train.steps": "10", "train.seed": "1", "attempt-2/train.steps": "20"}


def test_a_service_that_cannot_be_reached_is_a_sentence(folder, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write(folder, line(10))
    with pytest.raises(ServiceError, match="mlflow has not taken the log: ") as refused:
        send(folder, service_named("mlflow"))
    assert "\n" not in str(refused.value)
    assert not (folder / "sent-mlflow.json").exists()


def test_wandb_keeps_the_log_in_the_folder_when_it_is_offline(folder, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", os.fspath(folder))
    write(folder, *TIMES)
    assert send(folder, service_named("wandb")) == (3, None)
    assert send(folder, service_named("wandb")) == (0, None)
    (kept,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = kept.read_bytes()
    for word in (b"loss/mlm_loss", b"loss/held_out_mlm_loss", b"speed/sequences_per_second"):
        assert word in content


def test_trackio_has_the_lines(folder, monkeypatch):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    write(folder, *TIMES[:1])
    send(folder, service_named("trackio"))
    write(folder, *TIMES)
    send(folder, service_named("trackio"))
    found = SQLiteStorage.get_logs("mine", "first")
    assert [(values["step"], values.get("loss/mlm_loss")) for values in found] == [(10, 7.0), (20, None), (20, 6.0)]
