"""The folder of a run, checked before anything is computed."""

from pathlib import Path

from lucid.errors import ConfigError
from lucid.files import check_is_file, check_writable, reason_of
from lucid.training.log.metrics import METRICS_FILE


def check_run_folder(folder: Path) -> None:
    """Raise `ConfigError` if a run could not write its checkpoints and its log into `folder`, which may be missing.

    Nothing is made or left behind.
    """
    try:
        check_writable(folder / "checkpoints")
        check_writable(folder)
        if (folder / METRICS_FILE).exists():
            check_is_file(folder / METRICS_FILE)
    except OSError as error:
        raise ConfigError(
            f"run_folder is {folder}, but {error.filename} cannot be written ({reason_of(error)}): choose another "
            "folder, or correct this"
        ) from error
