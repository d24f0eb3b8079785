"""The commands of `lucid`. The module of a command is imported when the command runs, so that help comes at once."""

import inspect
from collections.abc import Iterator
from copy import copy
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# The first paragraph of each command's help. A command, its function or group, and their module have the same name.
COMMANDS = {
    "prepare": "Prepare a corpus: split text into sentences, tokenize them, and write shards that training reads.",
    "extend": "Extend a model's vocabulary by the words of a text that its tokenizer splits most.",
    "plan": "Print what a run will need and do: epochs, micro-batches, memory, checkpoints, FLOPs and time.",
    "train": "Train a run, or resume it from its newest checkpoint. For several ranks see lucid launch.",
    "launch": "Start the ranks of a run or a script with the MPI of this Python environment, on one host or several.",
    "submit": "Submit a job to SLURM: train, prepare, evaluate, verify or doctor. Print the command that does it.",
    "recipes": "List the recipes: settings of runs to start your own from.",
    "show": "Show the samples of any step of a run, or list the steps that hold a document.",
    "verify": "Replay steps of a run between two checkpoints, and say whether the same bits come out.",
    "explain": "Say what the loss curve of a run means: what is wrong, from which evidence, and what to try.",
    "evaluate": "Print a model's loss and accuracy on held-out documents. Under mpiexec, ranks share the work.",
    "predict": "Fill [MASK] in a sentence; with --next, predict whether a second sentence follows it.",
    "finetune": "Fine-tune models on labelled examples, and say which is better and by how much.",
    "embed": "Write one vector for each text. Under mpiexec, ranks share the work, and the vectors stay the same.",
    "export": "Export a run's newest checkpoint, or its best, as a model folder for transformers.",
    "average": "Average the weights of checkpoints, and write the mean as a model folder for transformers.",
    "plot": "Plot losses, accuracies, learning rate and speed of a run, or compare several runs.",
    "log": "Print the last lines of a run's log, or send the log to wandb, mlflow or trackio.",
    "report": "Write a report of a run as one HTML page: results, curves, speed, waits, restarts, settings.",
    "doctor": "Check this machine before a long run, or the machines of all ranks, and say what to fix.",
    "bench": "Measure how fast this machine trains.",
}


class _Readable:
    """A command whose help has a line for each paragraph, to be wrapped once, and no type for options without value."""

    def __init__(self, *arguments: Any, help: str | None = None, **settings: Any) -> None:
        paragraphs = inspect.cleandoc(help or "").split("\n\n")
        text = "\n\n".join(part if part.startswith(" ") else " ".join(part.split()) for part in paragraphs)
        super().__init__(*arguments, help=text, **settings)  # type: ignore[call-arg]

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, `--help` included."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class _Command(_Readable, TyperCommand):
    """A command with readable help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, with a line for each name of a switch: in columns of their own they cut all names short."""
        shown = copy(self)
        shown.params = [each for parameter in self.params for each in _lines_of(parameter)]
        TyperCommand.format_help(shown, ctx, formatter)


def _lines_of(parameter: Any) -> Iterator[Any]:
    """Return copies of an option with one name each, where it has one for yes and one for no."""
    yes, no = copy(parameter), copy(parameter)
    yield yes
    if opposite := getattr(parameter, "secondary_opts", None):
        yes.secondary_opts, no.secondary_opts, no.opts = [], [], opposite
        no.help = f"The opposite of {parameter.opts[0]}."
        yield no


class _Group(_Readable, TyperGroup):
    """A group of commands with readable help."""


class Commands(_Group):
    """A group that lists `COMMANDS` and imports only the command that runs."""

    def __init__(self, **settings: Any) -> None:
        listed = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}
        super().__init__(**{**settings, "commands": listed})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name of the first command in `args`, the command, and the other arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest


def load(name: str) -> Any:
    """Import the command `name`, and return it for use in a group."""
    found = getattr(import_module(f"lucid.cli.{name}"), name)
    if not isinstance(found, typer.Typer):
        function, found = found, typer.Typer(add_completion=False)
        found.command(name)(function)
    found.info.cls = _Group
    for command in found.registered_commands:
        command.cls = _Command
    return typer.main.get_command(found)
