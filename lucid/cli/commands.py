"""The commands of `lucid`: the module of one is imported when it runs, so that help comes at once."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# The first paragraph of each command's help. The command's function, or group, has its name, and so has their module.
COMMANDS = {
    "prepare": "Prepare a corpus: split text into sentences, tokenize them, and write shards that training reads.",
    "plan": "Print what a run will be: samples and epochs, the ranks' shares, memory, checkpoints, and work.",
    "train": "Train a run, or go on with it from its newest checkpoint. Several ranks: see lucid launch.",
    "launch": "Start the ranks of a run with the MPI of this Python environment, on this machine or on several hosts.",
    "submit": "Submit a job to SLURM: train, prepare, evaluate or doctor. Print the command that does it.",
    "recipes": "List the recipes: the settings of runs from which to make your own.",
    "evaluate": "Print a model's loss and accuracy on held-out documents; under mpiexec the ranks share the work.",
    "predict": "Fill [MASK] in a sentence, and with --next say whether a second sentence follows it.",
    "export": "Write a run's newest checkpoint as a model for transformers: config.json, model.safetensors and the "
    "tokenizer.",
    "plot": "Draw losses, accuracies and speed over the steps of a run.",
    "doctor": "Say what this machine can do, and what to mend, before a long run; under mpirun, what all ranks' "
    "machines can.",
    "bench": "Measure how fast this machine trains.",
}


class Commands(TyperGroup):
    """A group that lists `COMMANDS`, and imports the one that is to run."""

    def __init__(self, **settings: Any) -> None:
        listed = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}
        super().__init__(**{**settings, "commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name of the command that `args` begin with, the command, and the rest of `args`."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest


def load(name: str) -> Any:
    """Import the command called `name`, and return it as a group takes it."""
    found = getattr(import_module(f"lucid.cli.{name}"), name)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command(name)(function)
    return typer.main.get_command(found)
