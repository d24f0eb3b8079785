"""Whatever a command opens may be something else: it ends soon, in a sentence that names the path, and harms nothing.

`OPENED` lists what each command opens. A path that a command begins to open belongs there. Where commands open the same
files by the same code, one of them has them all.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from broken import FAULTS, NOT_PERMITTED, break_path, tree
from forks import ForkServer

# Bytes that a command may take: reading /dev/zero to its end would take all.
MEMORY = 1 << 30

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
CHECKPOINT = "run/checkpoints/0001-00000002"


def in_corpus(*splits: str) -> tuple[str, ...]:
    parts = ("tokens", "sentences", "documents")
    shards = [f"corpus/{split}-00000.{part}.npy" for split in splits for part in parts]
    return ("corpus", "corpus/manifest.json", "corpus/tokenizer", "corpus/tokenizer/tokenizer.json", *shards)


def in_checkpoint(*names: str) -> tuple[str, ...]:
    return ("run", "run/checkpoints", CHECKPOINT, *(f"{CHECKPOINT}/{name}" for name in names))


def in_model(*names: str) -> tuple[str, ...]:
    return ("model", *(f"model/{name}" for name in names))


@dataclass(frozen=True)
class Opened:
    """A command, the paths that it opens, and those of them without which it works: they may be missing or empty."""

    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    dispensable: tuple[str, ...] = ()


WEIGHTS, STATE = ("config.json", "model.safetensors"), ("manifest.json", "optimizer.safetensors", "state.json")
SENTENCES = "modules.json", "sentence_bert_config.json", "1_Pooling/config.json"
# vocab.txt holds as much, and the defaults are these settings.
WITHOUT = ("model/tokenizer.json", "model/tokenizer_config.json")
RUN_FOLDERS = ("run", "run/checkpoints", CHECKPOINT)
OPENED = {
    "prepare": Opened(
        ("prepare", "books", "-o", "new", "--vocab-size", "200", "--processes", "1"),
        ("books", "books/b.jsonl"),
        dispensable=("books/b.jsonl",),
    ),
    "prepare a saved dataset": Opened(
        ("prepare", "saved", "books", "-o", "new", "--vocab-size", "200", "--processes", "1"),
        ("saved", "saved/state.json", "saved/data.arrow"),
        dispensable=(
            "saved",
            "saved/state.json",
            "saved/data.arrow",
        ),  # an empty file without a suffix is an empty text
    ),
    "prepare with a tokenizer": Opened(
        ("prepare", "books", "-o", "new", "--tokenizer", "model", "--processes", "1"),
        in_model(*TOKENIZER),
        dispensable=WITHOUT,
    ),
    "extend": Opened(
        ("extend", "model", "books", "corpus", "-o", "new", "--tokens", "5", "--at-least", "1", "--processes", "1"),
        ("books", "books/b.jsonl", *in_model(*WEIGHTS, *TOKENIZER), *in_corpus("train", "held_out")),
        # An empty file is an empty text. Without its manifest the corpus is a folder with one: what was left out.
        dispensable=("books/b.jsonl", *WITHOUT, "corpus", "corpus/manifest.json", "corpus/tokenizer/tokenizer.json"),
    ),
    "train": Opened(("train", "run.yaml", "run_folder=new"), ("run.yaml", *in_corpus("train", "held_out"))),
    "train on top of a base": Opened(("train", "changed.yaml"), ("changed.yaml", "run.yaml")),
    "train, resuming": Opened(
        ("train", "run.yaml", "train.steps=3"), in_checkpoint(*WEIGHTS, *STATE), dispensable=RUN_FOLDERS
    ),
    "train with a probe": Opened(("train", "run.yaml", "run_folder=new", "train.probe=labels.tsv"), ("labels.tsv",)),
    "train from a model": Opened(
        ("train", "run.yaml", "run_folder=new", "initial_model=model"),
        in_model(*WEIGHTS, *TOKENIZER),
        dispensable=WITHOUT,
    ),
    "train from a checkpoint": Opened(
        ("train", "run.yaml", "run_folder=new", "initial_checkpoint=run"), in_checkpoint("manifest.json")
    ),
    "train a branch": Opened(
        ("train", "run.yaml", "run_folder=new", "branch_from=run", "train.steps=3"), in_checkpoint("state.json")
    ),
    "evaluate": Opened(
        ("evaluate", "run", "--samples", "8"),
        (*in_corpus("held_out"), *in_checkpoint(*WEIGHTS)),
        dispensable=("corpus/tokenizer/tokenizer.json",),
    ),
    "predict": Opened(("predict", "model", "One [MASK] here."), in_model(*WEIGHTS, *TOKENIZER), dispensable=WITHOUT),
    "finetune": Opened(
        ("finetune", "model", "--train", "examples.tsv", "--test", "examples.tsv", "--seeds", "1", "--epochs", "1"),
        ("examples.tsv",),
    ),
    "finetune on words": Opened(
        ("finetune", "model", "--train", "words.conll", "--test", "words.jsonl", "--seeds", "1", "--epochs", "1"),
        ("words.conll", "words.jsonl"),
    ),
    "embed": Opened(
        ("embed", "model", "books/a.txt", "-o", "new.npy"),
        ("books/a.txt", *in_model(*WEIGHTS, *TOKENIZER, *SENTENCES)),
        dispensable=(*WITHOUT, *(f"model/{name}" for name in SENTENCES)),
    ),
    "export": Opened(("export", "run", "new"), in_checkpoint("model.safetensors", *TOKENIZER)),
    "average": Opened(
        ("average", CHECKPOINT, CHECKPOINT, "new"),
        in_checkpoint(*WEIGHTS, *STATE, *TOKENIZER),
    ),
    "plot": Opened(("plot", "run", "-o", "new.png"), ("run", "run/metrics.jsonl")),
    "log": Opened(("log", "run"), ("run", "run/metrics.jsonl")),
    "explain": Opened(("explain", "run"), ("run", "run/metrics.jsonl")),
    "plan": Opened(
        ("plan", "run.yaml"),
        ("run.yaml", *in_corpus("train"), *in_checkpoint("state.json")),
        dispensable=("corpus", "corpus/tokenizer/tokenizer.json", *RUN_FOLDERS),
    ),
    "bench": Opened(
        ("bench", "step", "run.yaml", "run_folder=new", "--steps", "1"), ("run.yaml", "corpus/train-00000.tokens.npy")
    ),
    "show": Opened(
        ("show", "run", "--step", "2", "--loss"),
        ("corpus/train-00000.origins.npy", *in_corpus("train"), *in_checkpoint(*WEIGHTS, *STATE)),
    ),
    "verify": Opened(
        ("verify", "run", "--steps", "0:2"),
        ("run/metrics.jsonl", *in_corpus("train", "held_out"), *in_checkpoint(*WEIGHTS, *STATE)),
        dispensable=("run/metrics.jsonl", "corpus/tokenizer/tokenizer.json"),
    ),
    "launch": Opened(("launch", "-n", "1", "--hostfile", "hosts", "--dry-run", "run.yaml"), ("hosts",)),
    "submit": Opened(
        ("submit", "--dry-run", "--slurm", "slurm", "run.yaml"),
        ("run.yaml", "slurm", "slurm/job.sh", "slurm/site.env"),
        dispensable=("slurm/job.sh",),  # it is the user's, who may empty it
    ),
}
# What may be wrong with a path that a command can do without.
HARMLESS = ("missing", "an empty file", "an empty folder", NOT_PERMITTED)


CASES = [
    pytest.param(command, path, fault, id=f"{command}: {path} is {fault}")
    for command, opened in OPENED.items()
    for path in opened.paths
    for fault in FAULTS
]


def refuse(forks: ForkServer, folder: Path, command: str, path: str, fault: str) -> None:
    """Break a path, and check that the command refuses it."""
    break_path(folder / path, fault)
    before = tree(folder)
    limits = {"obeys_permissions": fault == NOT_PERMITTED, "memory": MEMORY}
    result = forks.run(*OPENED[command].arguments, folder=folder, **limits)
    assert not result.timed_out, result
    assert not result.left_processes, result
    if result.code == 0 and path in OPENED[command].dispensable and fault in HARMLESS:
        return
    assert (result.code, result.errors.count("\n")) == (2, 1), result
    assert set(Path(path).parts) & set(re.findall(r"[\w.-]+", result.errors)), result
    assert tree(folder) == before


@pytest.mark.parametrize("command", OPENED)
def test_each_command_works_with_what_is_there(forks: ForkServer, folder: Path, command: str) -> None:
    result = forks.run(*OPENED[command].arguments, folder=folder, memory=MEMORY)
    assert (result.code, result.errors) == (0, ""), result


@pytest.mark.parametrize("command", OPENED)
def test_a_pipe_in_place_of_a_file_is_refused(forks: ForkServer, folder: Path, command: str) -> None:
    path = next(path for path in OPENED[command].paths if (folder / path).is_file())
    refuse(forks, folder, command, path, "a fifo")


@pytest.mark.long
@pytest.mark.parametrize(("command", "path", "fault"), CASES)
def test_a_path_that_is_something_else_is_refused(
    forks: ForkServer, folder: Path, command: str, path: str, fault: str
) -> None:
    refuse(forks, folder, command, path, fault)
