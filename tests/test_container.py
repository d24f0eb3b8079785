"""Containerfile: all files and extras that it names exist. No test builds it, because that needs a registry."""

import re
import tomllib

from isolation import REPOSITORY

TEXT = (REPOSITORY / "Containerfile").read_text()
INSTRUCTIONS = [
    line.split(maxsplit=1) for line in TEXT.replace("\\\n", " ").splitlines() if line and not line.startswith("#")
]


def arguments(instruction):
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def test_its_instructions_lead_from_an_image_to_a_command():
    names = [name for name, _ in INSTRUCTIONS]
    assert names[0] == "FROM"
    assert set(names) == {"FROM", "RUN", "ARG", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert arguments("ENTRYPOINT") == ['["lucid"]']


def test_it_copies_all_sources_of_the_wheel():
    copied = {source for line in arguments("COPY") for source in line.split()[:-1]}
    assert all((REPOSITORY / source).exists() for source in copied)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert copied == {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], *wheel}


def test_its_extras_exist():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (default,) = arguments("ARG")
    named = re.findall(r"EXTRAS=([\w,]+)", TEXT)
    assert default == "EXTRAS=mpich,plot"
    assert {extra for names in named for extra in names.split(",")} <= extras.keys()
