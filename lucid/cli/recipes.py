"""`lucid recipes`: prints recipes, their schema and job scripts, and writes the SLURM job templates."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import lucid
from lucid.errors import ConfigError
from lucid.files import written_aside
from lucid.training.config import json_schema


class Scheduler(StrEnum):
    """The schedulers that have a job script to edit."""

    PBS = "pbs"
    LSF = "lsf"


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print the settings of this recipe.", show_default=False)] = None,
    slurm: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the templates of SLURM jobs into this folder.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of settings, by which editors complete and check.")
    ] = False,
    job: Annotated[
        Scheduler | None, typer.Option(help="Print a job script for this scheduler, to edit.", show_default=False)
    ] = None,
) -> None:
    """List the recipes: settings of runs to start your own from.

    Each recipe says where its numbers come from, and how to prepare its corpus.

    Examples:

        lucid recipes

        lucid recipes small_cpu > my.yaml

        lucid recipes --slurm slurm

        lucid recipes --schema > lucid.schema.json

        lucid recipes --job pbs > pretrain.pbs
    """
    asked = {"a recipe": name, "--slurm": slurm, "--schema": schema or None, "--job": job}
    given = [what for what, value in asked.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are two things to print: ask for one at a time")
    if schema:
        print(json.dumps(json_schema(), indent=2))
    if slurm is not None:
        _write_templates(slurm)
    if name is not None:
        print(_recipe(name).read_text(), end="")
    if job is not None:
        print((shipped("jobs") / f"pretrain.{job}").read_text(), end="")
    if not given:
        _print_list()


def shipped(name: str) -> Path:
    """Return the folder `configs`, `jobs` or `slurm` of this lucid: in the package, or next to it in a checkout."""
    package = Path(lucid.__file__).parent
    installed = package / name
    return installed if installed.is_dir() else package.parent / name


def _paths() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped("configs").glob("*.yaml"))}


def _recipe(name: str) -> Path:
    paths = _paths()
    if name not in paths:
        raise ConfigError(f"there is no recipe '{name}', there are {', '.join(paths)}")
    return paths[name]


def _print_list() -> None:
    paths = _paths()
    width = max(map(len, paths))
    for name, path in paths.items():
        purpose = path.read_text().partition("\n")[0].removeprefix("# ")
        print(f"{name:{width}}  {purpose}")


def _write_templates(folder: Path) -> None:
    templates = [path for path in sorted(shipped("slurm").iterdir()) if path.name != "site.env"]
    for template in templates:
        if (folder / template.name).exists():
            raise ConfigError(f"{folder / template.name} exists: remove it first, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for template in templates:
        with written_aside(folder / template.name, ConfigError) as file:
            file.write(template.read_bytes())
    print(f"{folder} holds the templates. Copy site.env.example in it to site.env, and describe your cluster there.")
