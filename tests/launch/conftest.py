"""What the tests of the launcher share."""

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder of the user, with a CONFIG named run.yaml."""
    (tmp_path / "run.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path
