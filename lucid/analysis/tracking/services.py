"""The tracking services that take the log of a run: one protocol, and for each service what its library calls it.

The libraries are optional, and imported when they are used.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from lucid.errors import ConfigError, ExitCode, LucidError
from lucid.files import reason_of
from lucid.training.log.metrics import Entry
from lucid.training.log.tags import tag_of

ServiceName = Literal["wandb", "mlflow", "trackio"]
SERVICES: tuple[ServiceName, ...] = get_args(ServiceName)
# How an attempt ended; None: it has not, or nothing says so.
How = Literal["finished", "stopped", "failed"]


class ServiceError(LucidError):
    """A service did not take something: it cannot be reached, or refuses."""

    exit_code = ExitCode.FAILED


class Service(Protocol):
    """A service that takes the log of a run. All methods raise `ServiceError`; each may be called again after one."""

    def open(self, folder: Path, project: str, name: str, run: str | None) -> str:
        """Open the service's run with the id `run`, or a new one in `project`, and return its id."""

    def configure(self, settings: Mapping[str, Any], attempt: int) -> None:
        """Send the settings of an attempt, by dotted key: plain JSON values."""

    def send(self, entries: Sequence[Entry]) -> Iterator[int]:
        """Send lines of the log. Whenever the service has taken some, yield how many.

        These have arrived, or the library keeps them on this machine.
        """

    def close(self, how: How | None) -> None:
        """Say how the run stands, and close it. It may be opened again."""


def service_named(name: ServiceName) -> Service:
    """Return a service. Raises `ConfigError` if its library is not installed, or lacks what it needs itself."""
    package = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}[name]
    try:
        library = import_module(name)
    except ImportError as error:
        if error.name == name:
            raise ConfigError(f"{name} is not installed: pip install {package}") from error
        raise ConfigError(f"{name} is installed, but cannot be imported: {error}") from error
    services: dict[ServiceName, Callable[[Any], Service]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}
    return services[name](library)


@contextmanager
def _errors_of(service: str) -> Iterator[None]:
    """Turn whatever a library raises into a sentence: each has errors of its own, and those of its HTTP library.

    They may name the service's address, whose user and password are left out.
    """
    try:
        yield
    except Exception as error:
        reason = next(iter(reason_of(error).strip().splitlines()), type(error).__name__)
        reason = re.sub(r"//[^/@\s]+@", "//***@", reason)
        raise ServiceError(f"{service} has not taken the log: {reason}") from error


def _values(entry: Entry) -> dict[str, float]:
    """Return the metrics of a line by the names that services show in groups."""
    return {tag_of(key): value for key, value in entry.items() if key not in ("step", "time") and value is not None}


class Wandb:
    """Weights & Biases. `WANDB_MODE=offline` keeps all in the run's folder, for `wandb sync`."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._run: Any = None

    def open(self, folder: Path, project: str, name: str, run: str | None) -> str:
        with _errors_of("wandb"):
            settings = self._library.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True)
            self._run = opened = self._library.init(
                project=project, name=name, id=run, resume="allow", dir=str(folder), settings=settings
            )
            # wandb's own steps only rise, but a run that resumes takes steps again.
            opened.define_metric("step")
            opened.define_metric("*", step_metric="step")
            return str(opened.id)

    def configure(self, settings: Mapping[str, Any], attempt: int) -> None:
        with _errors_of("wandb"):
            self._run.config.update(dict(settings), allow_val_change=True)

    def send(self, entries: Sequence[Entry]) -> Iterator[int]:
        for entry in entries:
            at = {"_timestamp": entry["time"]} if entry.get("time") else {}
            with _errors_of("wandb"):
                self._run.log({"step": entry["step"], **_values(entry), **at})
            yield 1

    def close(self, how: How | None) -> None:
        with _errors_of("wandb"):
            run, self._run = self._run, None
            if run is not None:
                run.finish(exit_code=int(how == "failed"))


class Mlflow:
    """MLflow, at `MLFLOW_TRACKING_URI`."""

    # The service's limits for one request.
    _METRICS, _PARAMETERS, _LETTERS = 1000, 100, 500

    def __init__(self, library: Any) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # 7 would take minutes
        self._library = library
        self._client: Any = None
        self._run = ""

    def open(self, folder: Path, project: str, name: str, run: str | None) -> str:
        with _errors_of("mlflow"):
            self._client = client = self._library.MlflowClient()
            if run is None:
                experiment = client.get_experiment_by_name(project)
                number = experiment.experiment_id if experiment else client.create_experiment(project)
                run = client.create_run(number, run_name=name).info.run_id
            else:
                client.update_run(run, status="RUNNING")
            self._run = run
            return run

    def configure(self, settings: Mapping[str, Any], attempt: int) -> None:
        """Send settings as parameters, which never change: those that do get the number of their attempt."""
        from mlflow.entities import Param

        with _errors_of("mlflow"):
            texts = {key: str(value)[: self._LETTERS] for key, value in settings.items()}
            known = self._client.get_run(self._run).data.params
            new = [
                Param(f"attempt-{attempt}/{key}" if key in known else key, text)
                for key, text in texts.items()
                if known.get(key) != text and known.get(f"attempt-{attempt}/{key}") != text
            ]
            for start in range(0, len(new), self._PARAMETERS):
                self._client.log_batch(self._run, params=new[start : start + self._PARAMETERS])

    def send(self, entries: Sequence[Entry]) -> Iterator[int]:
        """Send whole lines, as many in a request as it takes.

        They have their times, by which a service with a database knows a number that it has already.
        """
        lines = [self._metrics(entry) for entry in entries]
        start = 0
        while start < len(lines):
            sizes = accumulate(len(line) for line in lines[start:])
            stop = start + max(1, sum(size <= self._METRICS for size in sizes))
            metrics = [metric for line in lines[start:stop] for metric in line]
            with _errors_of("mlflow"):
                for first in range(0, len(metrics), self._METRICS):
                    self._client.log_batch(self._run, metrics=metrics[first : first + self._METRICS])
            yield stop - start
            start = stop

    def _metrics(self, entry: Entry) -> list[Any]:
        from mlflow.entities import Metric

        time = int(1000 * (entry.get("time") or 0))
        return [
            Metric(re.sub(r"[^\w./ :-]", "_", tag), float(value), time, entry["step"])
            for tag, value in _values(entry).items()
        ]

    def close(self, how: How | None) -> None:
        with _errors_of("mlflow"):
            if how in ("finished", "failed"):
                self._client.set_terminated(self._run, status=how.upper())


class Trackio:
    """Trackio: a database on this machine, or a Space by `TRACKIO_SPACE_ID`."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._run: Any = None

    def open(self, folder: Path, project: str, name: str, run: str | None) -> str:
        """Open a run. Its name is its id."""
        own = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        with _errors_of("trackio"), redirect_stdout(io.StringIO()):
            resume = "allow" if run else "never"
            self._run = self._library.init(project=project, name=run or name, resume=resume, **own)
            return str(self._run.name)

    def configure(self, settings: Mapping[str, Any], attempt: int) -> None:
        with _errors_of("trackio"):
            self._run.config.update(settings)

    def send(self, entries: Sequence[Entry]) -> Iterator[int]:
        for entry in entries:
            with _errors_of("trackio"):
                self._run.log(_values(entry), step=entry["step"])
            yield 1

    def close(self, how: How | None) -> None:
        with _errors_of("trackio"), redirect_stdout(io.StringIO()):
            run, self._run = self._run, None
            if run is not None:
                self._library.finish()
