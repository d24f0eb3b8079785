"""Commands that run in this process, and a short run for them."""

import pytest
import yaml
from tiny_run import RUN

from lucid.cli import main


@pytest.fixture
def lucid(capsys):
    """A function that runs one command and returns (exit code, standard output, standard error)."""

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(argument) for argument in arguments])
        return (leaving.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def run_folder(corpus_folder, tmp_path_factory):
    """A short run, trained by the command."""
    folder = tmp_path_factory.mktemp("commands")
    settings = {**RUN, "run_folder": str(folder / "run"), "data": {"path": str(corpus_folder), "sequence_length": 32}}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SystemExit) as leaving:
        main(["train", str(folder / "run.yaml")])
    assert leaving.value.code == 0
    return folder / "run"
