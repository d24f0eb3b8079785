"""What the documents tell their readers to type exists: commands, options and settings."""

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, command_lines, each_document, read
from isolation import REPOSITORY

from lucid.cli.commands import COMMANDS, load
from lucid.launch import options as launch_options
from lucid.training.config import load as load_settings
from lucid.training.config.schema import json_schema

# What may stand before `lucid`: variables, and launchers with their options.
BEFORE = re.compile(r"(?:\w+=\S* )*(?:(?:mpiexec|mpirun|srun)(?: -\w+ \S+| --?[\w-]+(?:=\S+)?)* )?")
OPTION = re.compile(r"--?[a-z][a-z-]*")
CONFIGS = REPOSITORY / "configs"
OVERRIDE = re.compile(r"[a-z_]+(?:\.[a-z_]+)?=")
SETTING = re.compile(r"((?:model|data|optimizer|train|distributed)\.\w+)=")
# A setting in a sentence. One file of a checkpoint begins likewise.
NAMED = re.compile(r"^(?:train|optimizer)\.(?!safetensors)\w+")


@cache
def options(command: str, subcommand: str = "") -> frozenset[str]:
    """The options of a command of lucid."""
    if command == "launch":
        return frozenset(("-h", "--help", *re.findall(r"(?<!\S)--?[a-z][a-z-]*", launch_options.USAGE)))
    found: Any = load(command)
    found = found.commands[subcommand] if subcommand else found
    return frozenset(("--help", "-h", *(name for each in found.params for name in (*each.opts, *each.secondary_opts))))


@cache
def settings() -> frozenset[str]:
    """All settings by their dotted names."""
    schema = json_schema()
    sections = {
        name: value["$ref"].rpartition("/")[2] for name, value in schema["properties"].items() if "$ref" in value
    }
    dotted = {f"{name}.{key}" for name, section in sections.items() for key in schema["$defs"][section]["properties"]}
    return frozenset(dotted | schema["properties"].keys())


def words_of(line: str) -> list[str]:
    """The words after `lucid` of a line that runs it; brackets stand around what may be left out."""
    start = BEFORE.match(line)
    assert start is not None
    rest = line[start.end() :]
    if not rest.startswith("lucid "):
        return []
    try:
        words = shlex.split(rest, comments=True)
    except ValueError:  # a quotation that the line does not end
        words = rest.split()
    for place, word in enumerate(words):
        if word in ("|", "&", ";", "--", "||") or word.startswith(("2>", ">")):
            words = words[:place]
            break
    bare = [word if "=[" in word else word.strip("[]().,:;") for word in words[1:]]
    return [part for word in bare for part in word.split("|") if part]


def mistakes(line: str) -> Iterator[str]:
    """Yield what a line has that lucid does not know."""
    command, *rest = words_of(line) or [""]
    if not re.fullmatch("[a-z]+", command):  # a placeholder, or an option of lucid itself
        return
    if command not in COMMANDS:
        yield f"lucid {command}"
        return
    subcommand = "step" if command == "bench" and rest[:1] == ["step"] else ""
    known = options(command, subcommand)
    if command == "submit":  # it may be followed by another command
        known = known.union(*(options(word) for word in rest if word in COMMANDS))
    if command == "launch" and "--doctor" in rest:
        known |= options("doctor")
    for word in rest:
        name = word.partition("=")[0]
        if OPTION.fullmatch(name) and name not in known:
            yield f"lucid {command} {name}"
        if (setting := SETTING.match(word)) and setting[1] not in settings():
            yield setting[1]


@each_document
def test_commands_options_and_settings_are_known(document: Path) -> None:
    if document.name != "CHANGELOG.md":  # it tells of what there was
        assert [mistake for line in command_lines(document) for mistake in mistakes(line)] == []


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("lucid pretrain books/", "lucid pretrain"),
        ("lucid prepare books/ --ouput data/mine", "lucid prepare --ouput"),
        ("mpiexec -n 4 lucid train my.yaml train.batch=3", "train.batch"),
        ("OMP_NUM_THREADS=1 lucid launch -m 3 my.yaml", "lucid launch -m"),
    ],
)
def test_a_mistake_is_found(line: str, mistake: str) -> None:
    assert list(mistakes(line)) == [mistake]


def started(document: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the recipe and the overrides of each run that a document starts or plans from a recipe."""
    written: dict[str, Path] = {}
    for line in command_lines(document):
        if made := re.search(r"lucid recipes (\w+) > (\S+)", line):
            written[made[2]] = CONFIGS / f"{made[1]}.yaml"
        command, *rest = words_of(line) or [""]
        if command not in ("launch", "train", "plan", "submit"):
            continue
        for place, word in enumerate(rest):
            if recipe := REPOSITORY / word if word.startswith("configs/") else written.get(word):
                yield recipe, [each for each in rest[place:] if OVERRIDE.match(each)]


@each_document
def test_runs_that_a_document_starts_from_a_recipe_have_settings_that_go_together(document: Path) -> None:
    for recipe, overrides in started(document):
        load_settings(recipe, overrides)  # raises ConfigError


def test_the_documents_start_runs_from_recipes() -> None:
    runs = [(recipe.stem, overrides) for document in DOCUMENTS for recipe, overrides in started(document)]
    assert {"small_cpu", "continue_from_huggingface", "bert_base_phase1"} <= {recipe for recipe, _ in runs}
    assert sum(bool(overrides) for _, overrides in runs) > 5


@each_document
def test_settings_that_a_document_names_exist(document: Path) -> None:
    named = {name for span in read(document).spans for name in NAMED.findall(span)}
    if document.name not in ("CHANGELOG.md", "python.md"):  # there an optimizer is an object
        assert named <= settings()


def test_the_documents_have_commands() -> None:
    assert sum(bool(words_of(line)) for document in DOCUMENTS for line in command_lines(document)) > 100
