"""README.md: its shell blocks run as they are written, its Python runs, and what it shows is what is printed.

They run one after the other in a copy of the checkout, whose configs/small_cpu.yaml is of a tiny model and a few steps.
Programs in `commands` stand in for what needs a network, a cluster or several hosts. A block is ```sh (runs),
```console (runs, and prints what is shown), ```text (what the block before it printed) or ```python.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import sys
import sysconfig
import tomllib
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from isolation import REPOSITORY, USER_HOME
from launching import run_to_end
from markdown_it import MarkdownIt
from texts import made_up_text

from lucid.data.tokenizer import load_tokenizer, special_tokens
from lucid.models.bert.memory import parameter_count
from lucid.training.config import load

SECONDS = 560
pytestmark = [pytest.mark.xdist_group("readme"), pytest.mark.timeout(SECONDS + 40)]

README = REPOSITORY / "README.md"
RECIPE = REPOSITORY / "configs" / "small_cpu.yaml"
COMMANDS = Path(__file__).parent / "commands"
# What the tests may run: a program that is not here may do anything.
KNOWN = {"git", "cd", "make", "python3", ".", "pip", "lucid", "cp"}
TINY = {
    "model": {
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4,
    },
    "data": {"sequence_length": 8},
    "optimizer": {"warmup_steps": 5},
    "train": {"steps": 20, "log_every": 4, "global_batch": 8, "evaluation_samples": 8},
}


@dataclass(frozen=True)
class Block:
    """A block of README.md. `language` is "" where it does not say what it is."""

    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"line {self.line}"


TOKENS = MarkdownIt("commonmark").parse(README.read_text())
BLOCKS = [
    Block(token.map[0] + 1, token.info, token.content) for token in TOKENS if token.type in ("fence", "code_block")
]


def blocks(*languages):
    return pytest.mark.parametrize(
        "block", [block for block in BLOCKS if block.language in languages], ids=lambda block: block.name
    )


def commands(block):
    """The command lines of a block."""
    if block.language == "console":
        return [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    return block.text.splitlines()


def shown(block):
    """The lines of a block that say what is printed."""
    return [line for line in block.text.splitlines() if block.language == "text" or not line.startswith("$ ")]


def tiny_checkout(folder, *folders):
    """Copy these folders of the checkout, and the files beside them; make the recipe tiny, and return its settings."""
    for name in folders:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("site.env", "__pycache__"))
    for name in ("Makefile", "README.md", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder)
    settings = yaml.safe_load(RECIPE.read_text())
    settings |= {section: settings[section] | TINY[section] for section in TINY}
    (folder / "configs" / RECIPE.name).write_text(yaml.safe_dump(settings))
    return settings


class Reader:
    """Someone who follows README.md from its beginning, and has `commands` in place of programs."""

    def __init__(self, folder, mpiexec):
        self.folder = folder
        self._printed = {}
        self.lucid = folder / "lucid"
        checkout = folder / "checkout"
        self._add_what_readers_have(checkout, tiny_checkout(checkout, "configs", "launch", "slurm"))
        self._variables = {
            "PIP_NO_INDEX": "1",  # should our stand-in be passed by
            "README_CHECKOUT": str(checkout),
            "README_COMMANDS": str(COMMANDS),
            "README_MAKE": str(shutil.which("make")),
            "README_MPIEXEC": mpiexec,
            "README_PACKAGES": sysconfig.get_path("purelib"),
            "README_PREFIX": sys.prefix,
            "README_PYTHON": sys.executable,
            "PATH": os.pathsep.join([str(COMMANDS), str(self.lucid / ".venv" / "bin"), os.environ["PATH"]]),
        }

    @staticmethod
    def _add_what_readers_have(checkout, settings):
        """Their text, hosts and settings, and a run that has come to a checkpoint."""
        (checkout / "books").mkdir()
        (checkout / "books" / "one.txt").write_text(made_up_text(50, seed=1))
        news = "".join(json.dumps({"text": made_up_text(1, seed)}) + "\n" for seed in range(20))
        (checkout / "news.jsonl.gz").write_bytes(gzip.compress(news.encode()))
        (checkout / "hosts").write_text("node1\nnode2\n")
        settings["train"]["global_batch"] = 16
        (checkout / "my.yaml").write_text(yaml.safe_dump(settings))

    def printed(self, block):
        """The exit code of a block and what it has printed; those before it have run."""
        for each in BLOCKS[: BLOCKS.index(block) + 1]:
            if each not in self._printed and each.language in ("sh", "console"):
                self._printed[each] = self._run(each)
        return self._printed[block]

    def _run(self, block):
        state = self.folder / block.name
        state.mkdir()
        with chdir(self.lucid if self.lucid.exists() else self.folder):
            finished = run_script("\n".join(commands(block)), self._variables | {"README_STATE": str(state)})
        return finished.returncode, finished.stdout


def run_script(text, variables):
    """Run lines of bash, up to the first that fails."""
    return run_to_end(["bash", "-e", "-o", "pipefail", "-c", text], SECONDS, variables)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, mpiexec):
    return Reader(tmp_path_factory.mktemp("readme"), mpiexec)


def test_every_block_says_what_it_is():
    assert BLOCKS[0].language == "sh"
    for block in BLOCKS:
        assert block.language in ("sh", "console", "text", "python"), (
            f"README.md, line {block.line}: begin this block with ```sh, ```console, ```text or ```python, "
            "so that the tests know whether to run it"
        )


@blocks("sh", "console")
def test_every_command_is_one_that_the_tests_may_run(block):
    for line in commands(block):
        words = shlex.split(line, comments=True)
        firsts = [words[0], *(words[place + 1] for place, word in enumerate(words) if word == "&&")]
        for first in set(firsts) - KNOWN:
            pytest.fail(
                f"README.md, line {block.line}: the tests do not know {first}: add it to KNOWN in {__file__}, "
                "and what stands for it to commands/ if it needs a network, a cluster or another host"
            )


@blocks("sh", "console")
def test_commands_run_as_they_are_written(reader, block):
    code, output = reader.printed(block)
    assert code == 0, output


def generalised(line):
    """A line without its figures, and without the words that a model predicts before a percentage.

    On a busy machine a step line ends with the rank that the others wait for.
    """
    line = re.sub(r"  waits \d+% for rank .*", "", line)
    line = re.sub(r"\d[\d,.:]*%?", "#", line)
    line = re.sub(r"\S+ #(?=, |$)", "WORD #", line) if line.startswith("[MASK]") else line
    # Of a table the head tells all; rows differ from machine to machine.
    line = re.sub("[^│]+", " ", line) if line.startswith("│") else line
    line = re.sub("[━┏┳┓┡╇┩─└┴┘]+", "-", line).replace("does not follow", "follows")
    return re.sub(" +", " ", line).strip()


@blocks("text", "console")
def test_what_is_shown_is_what_is_printed(reader, block):
    """In this order, with other figures and perhaps more lines between."""
    before = block if block.language == "console" else BLOCKS[BLOCKS.index(block) - 1]
    _, output = reader.printed(before)
    lines = iter([generalised(line) for line in output.splitlines()])
    for line in shown(block):
        # Whoever has used lucid on this machine has the kernels.
        if line != "…" and not line.startswith("lucid: compiling kernels"):
            assert generalised(line) in lines, f"{line!r} is not printed, or elsewhere:\n{output}"


def test_the_figures_of_the_first_run_are_those_of_its_recipe():
    recipe = load(RECIPE)
    steps, batch, length = recipe.train.steps, recipe.train.global_batch, recipe.data.sequence_length
    text = README.read_text()
    count = parameter_count(recipe.model)
    assert f"{count:,} parameters; {steps:,} steps of {batch} sequences of {length} tokens" in text
    assert text.count(f"{recipe.run_folder}/checkpoints/0001-{steps:08}") == 2


def test_every_extra_that_is_named_can_be_installed():
    named = {extra for extras in re.findall(r"\.\[([\w,-]+)\]", README.read_text()) for extra in extras.split(",")}
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert named <= extras.keys()


@blocks("python")
def test_the_python_runs_on_the_first_run(reader, block, monkeypatch):
    reader.printed(BLOCKS[0])
    text = block.text.replace(f"{load(RECIPE).train.steps:08}", f"{TINY['train']['steps']:08}")
    monkeypatch.chdir(reader.lucid)
    names = {"input_ids": np.arange(5, 21).reshape(2, 8), "nsp_labels": np.array([0, 1])}
    exec(compile(text, README, "exec"), names)
    assert np.isfinite(names["loss"].item())
    assert all(parameter.grad is not None for parameter in names["model"].parameters())
    assert special_tokens(load_tokenizer(reader.lucid / "data" / "python-docs" / "tokenizer")).mask == 4


def test_a_job_is_submitted_from_a_template_that_is_there(reader):
    (block,) = [block for block in BLOCKS if "lucid submit" in block.text]
    _, output = reader.printed(block)
    [template] = re.findall(r"^sbatch .* (\S+\.sbatch) my\.yaml$", output, re.MULTILINE)[-1:]
    assert Path(template).exists()


@pytest.mark.long
def test_lucid_can_be_installed_from_the_index_as_it_is_written(tmp_path):
    """Without stand-ins, and with the home of the user, where pip may have its settings."""
    (block,) = [block for block in BLOCKS if "-m venv" in block.text]
    tiny_checkout(tmp_path / "lucid", "configs", "launch", "lucid", "slurm")
    with chdir(tmp_path / "lucid"):
        finished = run_script(block.text, {"HOME": os.environ[USER_HOME], "PYTHONPATH": ""})
    assert finished.returncode == 0, finished.stdout
    assert "finished at step 20 of 20" in finished.stdout
