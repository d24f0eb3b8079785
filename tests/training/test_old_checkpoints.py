"""Files of an earlier version are read: settings, a corpus, and a checkpoint from which a run resumes."""

import json
import shutil
from pathlib import Path

import pytest

from lucid.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"


def losses(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.mark.parametrize("name", ["run_0.1.0"])
def test_a_run_of_an_earlier_version_goes_on_along_its_curve(tmp_path, monkeypatch, capsys, name):
    shutil.copytree(GOLDEN / name, tmp_path / name)
    monkeypatch.chdir(tmp_path / name)
    curve = losses(Path("run"))
    with pytest.raises(SystemExit) as leaving:
        main(["train", "run.yaml"])
    assert (leaving.value.code, "resumes from step 4" in capsys.readouterr().out) == (0, True)
    assert losses(Path("run")) == pytest.approx(curve, rel=1e-4)
