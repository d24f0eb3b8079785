"""The help of every command, and of the settings, on terminals of several widths."""

import re
from itertools import pairwise

import pytest
from small_run import write_settings
from typer.testing import CliRunner

from lucid.cli.app import app
from lucid.cli.commands import COMMANDS
from lucid.cli.commands import load as load_command
from lucid.launch.options import USAGE
from lucid.training.config import load
from lucid.training.config.described import as_yaml

PAGES = [[], *([name] for name in COMMANDS if name != "launch"), ["bench", "step"]]


def page(command: list[str], width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    if command == ["launch"]:
        return USAGE.splitlines()
    monkeypatch.setenv("COLUMNS", str(width))
    finished = CliRunner().invoke(app, [*command, "--help"])
    assert finished.exit_code == 0
    return finished.output.splitlines()


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("command", [*PAGES, ["launch"]], ids=" ".join)
def test_help_fits_the_terminal_and_is_wrapped_once(
    command: list[str], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = page(command, width, monkeypatch)
    assert max(map(len, lines)) <= width
    assert "<bool>" not in "\n".join(lines)
    width = 80 if command == ["launch"] else width - 2
    prose = [line.strip() if re.match(r" ?\w", line) else "" for line in lines]
    for line, following in pairwise(prose):
        if line and following and not line.startswith("Usage"):
            assert len(f"{line} {following.split()[0]}") > width - 1, f"{line!r} was wrapped before {following!r}"


@pytest.mark.parametrize("command", [page for page in PAGES if page not in ([], ["bench"])], ids=" ".join)
def test_no_name_of_an_option_is_cut_short(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_command(command[0])
    for name in command[1:]:
        found = found.commands[name]
    names = {name for each in found.params if each.param_type_name == "option" for name in each.opts}
    names |= {name for each in found.params for name in each.secondary_opts}
    shown = [line.strip("│* ").split(" ")[0] for line in page(command, 80, monkeypatch) if line.startswith("│")]
    assert {name for name in names if name.startswith("--")} <= set(shown)


@pytest.mark.parametrize("command", PAGES, ids=" ".join)
def test_examples_are_lines_of_their_own(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = page(command, 80, monkeypatch)
    if "Examples:" not in "\n".join(lines):
        assert command in ([], ["bench"])
        return
    begin = next(number for number, line in enumerate(lines) if "Examples:" in line)
    end = next(number for number, line in enumerate(lines) if number > begin and line.startswith("╭"))
    examples = [line.rstrip() for line in lines[begin + 1 : end] if line.strip()]
    assert examples
    assert all(re.match(r"     (OMP_NUM_THREADS=1 )?(mpiexec -n \d+ )?lucid ", line) for line in examples)


def test_the_description_of_settings_fits_a_terminal(tmp_path) -> None:
    file = write_settings(tmp_path / "run.yaml", tmp_path / "corpus", tmp_path / "run")
    text = as_yaml(load(file, ["run_folder=runs/a", "data.path=data/a"]))
    assert max(map(len, text.splitlines())) <= 100
