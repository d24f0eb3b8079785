"""Stands for pip in an environment made by the python3 beside it: "installs" lucid's extras without an index.

It links to the packages of the tests' own environment. Each extra that is named has to be in pyproject.toml.
"""

import argparse
import os
import re
import sys
import sysconfig
import tomllib
from pathlib import Path

parser = argparse.ArgumentParser(prog="pip")
commands = parser.add_subparsers(required=True)
install = commands.add_parser("install")
for flag in ("--quiet", "--disable-pip-version-check"):
    install.add_argument(flag, action="store_true")
install.add_argument("-e", "--editable", required=True)
requirement = parser.parse_args().editable

named = re.fullmatch(r"\.\[([\w,-]+)\]", requirement)
if named is None:
    sys.exit(f"tests/readme/commands/pip knows no {requirement}")
extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
for extra in named[1].split(","):
    if extra not in extras:
        sys.exit(f"pyproject.toml has no extra {extra}")

packages = os.environ["README_PACKAGES"]
Path(sysconfig.get_path("purelib"), "tests.pth").write_text(f"import site; site.addsitedir({packages!r})\n")
here, given = Path(sys.prefix), Path(os.environ["README_PREFIX"])
wanted = [Path(os.environ["README_COMMANDS"], "mpiexec"), *(given / "lib").glob("*mpi*")]
for path in wanted:
    link = here / ("lib" if path.parent.name == "lib" else "bin") / path.name
    if not link.exists():
        link.symlink_to(path)
lucid = here / "bin" / "lucid"
lucid.write_text(f"#!{here}/bin/python\nfrom lucid.cli import main\n\nmain()\n")
lucid.chmod(0o755)
