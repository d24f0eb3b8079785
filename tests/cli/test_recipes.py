"""lucid recipes: what it lists, prints and writes."""

import json
import shutil
from pathlib import Path

import pytest

import lucid
from lucid.cli import main
from lucid.training.config import json_schema, load

REPOSITORY = Path(lucid.__file__).parents[1]


@pytest.fixture
def recipes(capsys):
    """A function that calls `lucid recipes`, and returns the exit code and what was printed."""

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main(["recipes", *map(str, arguments)])
        return leaving.value.code, capsys.readouterr()

    return run


def test_every_recipe_is_listed_with_its_purpose_in_a_line(recipes):
    code, printed = recipes()
    lines = printed.out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == sorted(path.stem for path in REPOSITORY.glob("configs/*.yaml"))
    assert lines[-1].split(maxsplit=1)[1] == "A small BERT on the documentation of Python, in minutes on two cores"


def test_a_recipe_is_printed_as_it_is(recipes, tmp_path):
    code, printed = recipes("small_cpu")
    (tmp_path / "my.yaml").write_text(printed.out)
    assert code == 0
    assert load(tmp_path / "my.yaml") == load(REPOSITORY / "configs" / "small_cpu.yaml")


def test_the_schema_is_printed_alone(recipes):
    code, printed = recipes("--schema")
    assert code == 0
    assert json.loads(printed.out) == json_schema()


def test_a_recipe_that_there_is_not_is_refused_with_those_there_are(recipes):
    code, printed = recipes("small")
    assert (code, printed.out) == (2, "")
    assert printed.err.startswith("lucid: there is no recipe 'small', there are bert_base_phase1, ")


@pytest.mark.parametrize("also", [("--schema",), ("--job", "pbs"), ("--slurm", "nowhere")])
def test_two_things_are_not_printed_at_once(recipes, also):
    code, printed = recipes("small_cpu", *also)
    assert (code, printed.out) == (2, "")
    assert f"a recipe and {also[0]} are two things to print: ask for one at a time" in printed.err


def test_job_templates_are_written_and_never_over_others(recipes, tmp_path):
    code, printed = recipes("--slurm", tmp_path / "jobs")
    written = {path.name for path in (tmp_path / "jobs").iterdir()}
    assert code == 0
    assert {"job.sh", "pretrain_cpu.sbatch", "site.env.example"} <= written
    assert "site.env" not in written
    assert "site.env" in printed.out
    shutil.copy(tmp_path / "jobs" / "site.env.example", tmp_path / "jobs" / "site.env")
    code, printed = recipes("--slurm", tmp_path / "jobs")
    assert (code, printed.out) == (2, "")
    assert "exists: remove it first, or choose another folder" in printed.err
