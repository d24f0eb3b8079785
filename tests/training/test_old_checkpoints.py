"""Files of an earlier version are read: settings, a corpus, and a checkpoint from which a run resumes."""

import json
import shutil
from pathlib import Path

import pytest

from lucid.cli import main
from lucid.training.checkpoints.checkpoint import read_state
from lucid.training.checkpoints.store import find_model

GOLDEN = Path(__file__).parents[1] / "golden"


def losses(folder):
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record["loss"] for record in records if "loss" in record}


# Random segments are chosen by another rule since 0.1.0, so with pairs the curves differ by up to 0.2%. Without the
# moments they would differ by 0.5%, without the weights by 3%.
@pytest.mark.parametrize(
    ("version", "run", "tolerance"), [("run_0.1.0", "run_without_pairs", 1e-4), ("run_0.1.0", "run", 3.5e-3)]
)
def test_a_run_of_an_earlier_version_goes_on_along_its_curve(tmp_path, monkeypatch, capsys, version, run, tolerance):
    shutil.copytree(GOLDEN / version, tmp_path / version)
    monkeypatch.chdir(tmp_path / version)
    curve = losses(Path(run))
    with pytest.raises(SystemExit) as leaving:
        main(["train", f"{run}.yaml"])
    assert (leaving.value.code, "resumes from step 4" in capsys.readouterr().out) == (0, True)
    assert losses(Path(run)) == pytest.approx(curve, rel=tolerance)
    # Whether it had other settings before it resumed, nobody knows.
    past = read_state(find_model(Path(run))).past
    assert past is not None
    assert [(each.step, each.known) for each in past] == [(4, False)]
    # That version did not count the tokens.
    resumed = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()][-1]
    assert resumed["samples"] > past[0].samples_consumed
    assert "tokens" not in resumed
