"""`lucid finetune`: fine-tunes models on labelled examples, and says which is better and by how much."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from lucid.cli.device import Device
from lucid.cli.model_folder import ModelFolder, agreed_model, check_new
from lucid.cli.model_options import BestOption, WatchdogOption
from lucid.cli.same_input import check_same
from lucid.data.tokenizer import save_tokenizer
from lucid.distributed import Communicator, all_or_none, choose, session, watched
from lucid.errors import CheckpointError, ConfigError, DataError
from lucid.files import replacing
from lucid.finetuning.bootstrap import ENOUGH, Difference
from lucid.finetuning.comparison import Comparison, Contender, Result, differences
from lucid.finetuning.examples import Task, read_task
from lucid.finetuning.tuning import Recipe
from lucid.models.bert.model import PREFIX
from lucid.output import table_width
from lucid.training.config import WATCHDOG_SECONDS
from lucid.training.formatting import count
from lucid.training.running import process_as_it_was


def finetune(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Folders of runs, checkpoints or models.", show_default=False),
    ],
    train: Annotated[
        Path,
        typer.Option(
            help="Examples to train on: .tsv, .csv or .jsonl; for labels of words .jsonl or .conll; also compressed "
            "(.gz, .zst, .xz, .bz2).",
            show_default=False,
        ),
    ],
    test: Annotated[
        Path, typer.Option(help="Examples to compare the models on, of the same kind.", show_default=False)
    ],
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Examples to choose a learning rate on. Default: a tenth of those to train on.", show_default=False
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column or field with the text. Default: text, or sentence.", show_default=False
        ),
    ] = None,
    pair: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column or field with a second text. Default: pair, if any.", show_default=False
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or field with the label. Default: label.", show_default=False),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Compare random weights in the shape of the first MODEL, too.")
    ] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="How often each model is fine-tuned: data order, dropout, head.")
    ] = 5,
    epochs: Annotated[int, typer.Option(min=1, help="How often each example is trained on.")] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples of a step, on all ranks together.")] = 32,
    learning_rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="RATE",
            help="Of several (repeat the option), each MODEL takes the best on --validation. "
            "Default: 0.0384 / width of the model.",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int, typer.Option(min=8, help="Tokens to which texts are cut, at most as many as a model takes.")
    ] = 128,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the best MODEL, fine-tuned with the first seed, for transformers.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    best: BestOption = False,
    device: Annotated[Device, typer.Option(help="Device of the ranks.")] = Device.CPU,
    watchdog_seconds: WatchdogOption = WATCHDOG_SECONDS,
) -> None:
    """Fine-tune models on labelled examples, and say which is better and by how much.

    The examples are texts or pairs with a label each, or sentences with a label for each word. Each MODEL is trained
    with several seeds. The table shows the mean over them, and the lowest and the highest. Then each MODEL is compared
    with the first, with an interval from the paired bootstrap over the test examples. Under mpiexec, ranks share the
    work, and the results are the same up to rounding.

    Examples:

        lucid finetune models/old runs/mine --train train.tsv --test test.tsv

        lucid finetune runs/mine --from-scratch --train a.csv --test b.csv

        mpiexec -n 4 lucid finetune runs/mine --train a.conll --test b.conll
    """
    if any(not 0 < rate < 1 for rate in learning_rate or ()):
        raise ConfigError("--learning-rate takes numbers between 0 and 1")
    if validation is not None and len(learning_rate or ()) < 2:
        raise ConfigError("--validation serves to choose one of several rates: repeat --learning-rate, or leave it out")
    if len(set(models)) < len(models):
        raise ConfigError("a MODEL is named twice: name each once")
    with session() as group, process_as_it_was(), watched(group, watchdog_seconds):
        task = all_or_none(group, lambda: read_task(train, test, validation, text=text, pair=pair, label=label))
        folders = {path: agreed_model(group, path, best) for path in models}
        contenders, remarks = all_or_none(group, lambda: _contenders(folders, from_scratch, task, output))
        _check_same(group, task, contenders)
        communicator = choose(group, "auto", device=device)
        recipe = Recipe(learning_rate=0.0, epochs=epochs, batch_size=batch_size)
        with _progress(group.rank == 0, as_json) as begin:
            comparison = Comparison(task, recipe, learning_rate or (), seeds, max_length, communicator, begin)
            results = [comparison.result_of(contender, keep=output is not None) for contender in contenders]

        def report() -> None:
            if group.rank == 0:
                try:
                    if output is not None:
                        best_result = max(results[: len(models)], key=lambda each: each.mean)
                        remarks.append(_write(comparison, best_result, output))
                finally:
                    # An output that cannot be written must not lose the results.
                    _report(task, results, remarks, as_json)

        all_or_none(group, report)


def _contenders(
    folders: Mapping[Path, Path], from_scratch: bool, task: Task, output: Path | None
) -> tuple[list[Contender], list[str]]:
    """Return the models to compare, from the folder of each MODEL, and remarks for users."""
    if output is not None:
        check_new(output)
    contenders, remarks = [], task.remarks
    for path, folder in folders.items():
        found = ModelFolder.read(folder)
        tokenizer = found.tokenizer()
        model, missing = found.model.with_vocabulary(tokenizer.get_vocab_size()), found.weights.missing
        weights = {
            name: array
            for name, array in model.state_dict().items()
            if name.startswith(PREFIX) and not found.weights.is_missing(name)
        }
        if not all(np.isfinite(array).all() for array in weights.values()):
            raise CheckpointError(f"{found.folder} has weights that are not finite: take an older checkpoint")
        contenders.append(Contender(str(path), model.config, tokenizer, weights))
        if "pooler" in missing and not task.by_word:
            remarks.append(f"{path} has no pooler: it begins anew with each seed")
    return contenders + [contenders[0].from_scratch()] * from_scratch, remarks


def _check_same(group: Communicator, task: Task, contenders: Sequence[Contender]) -> None:
    """Raise an agreed error if ranks read other examples or models: they would wait for each other, or mix them."""
    files = task.files
    texts = (json.dumps([each.texts, each.pairs, each.labels]) for each in files)
    check_same(group, " or ".join(str(each.path) for each in files), texts, (), DataError)
    models = (text for each in contenders for text in (repr(each.config), each.tokenizer.to_str()))
    weights = (each.weights for each in contenders)
    check_same(group, " or ".join(each.name for each in contenders), models, weights, CheckpointError)


@contextmanager
def _progress(is_first: bool, as_json: bool) -> Iterator[Callable[[str, str, int], Callable[[], object]]]:
    """Show on the first rank what is trained: by a live line on a terminal, else by a line each, but not with JSON."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    is_shown = is_first and console.is_terminal
    description = TextColumn("{task.description}", markup=False)
    with Progress(description, *columns, console=console, transient=True, disable=not is_shown) as progress:
        shown = progress.add_task("starting", total=None)

        def begin(model: str, what: str, steps: int) -> Callable[[], object]:
            if is_first and not is_shown and not as_json:
                print(f"{model}, {what}: {count(steps, 'step')}", flush=True)
            progress.reset(shown, description=f"{model}, {what}", total=steps)
            return lambda: progress.advance(shown)

        yield begin


def _report(task: Task, results: Sequence[Result], remarks: Sequence[str], as_json: bool) -> None:
    found = differences(results)
    remarks = [*remarks, *(sentence for result in results for sentence in _remarks_on(result, task))]
    if found and len(task.test) < ENOUGH:
        remarks.append(f"{task.test.path} has too few examples for the intervals: do not rely on them below {ENOUGH}")
    if as_json:
        print(json.dumps(_as_json(task, results, found, remarks), indent=2, ensure_ascii=False))
        return
    headings = "model", "learning rate", *(metric.name for metric in results[0].metrics)
    table = Table(*(Column(heading, overflow="fold") for heading in headings))
    for result in results:
        table.add_row(result.contender.name, f"{result.recipe.learning_rate:.2g}", *map(_shown, _values(result)))
    Console(width=table_width(), soft_wrap=True, highlight=False, markup=False).print(table)
    metric, first = results[0].metrics[0].name, results[0].contender.name
    for result, (of_model, *_) in zip(results[1:], found, strict=True):
        print(of_model.sentence(result.contender.name, first, metric))
    kind = "sentences" if task.by_word else "pairs" if task.train.pairs is not None else "texts"
    to_choose = "" if task.validation is None else f"{len(task.validation):,} to choose a learning rate on, "
    print(
        f"{len(task.train):,} {kind} to train on, {to_choose}{len(task.test):,} to test on, {len(task.labels)} labels",
        *remarks,
        sep="\n",
    )


def _values(result: Result) -> list[list[float]]:
    """Return the values of each metric for each seed."""
    return [metric.of_seeds() for metric in result.metrics]


def _shown(values: Sequence[float]) -> str:
    """Return the mean over seeds, and the range if there are several."""
    spread = f" ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else ""
    return f"{np.mean(values):.1%}{spread}"


def _remarks_on(result: Result, task: Task) -> Iterator[str]:
    name = result.contender.name
    if result.skipped:
        yield f"{name}: {result.skipped:,} updates were skipped, as gradients were not finite: lower --learning-rate"
    if result.cut_off:
        yield (
            f"{name}: {result.cut_off:,} words of {task.test.path} are beyond --max-length or have no token: they are "
            f"taken for {task.labels[task.commonest]!r}, the commonest label"
        )


def _as_json(
    task: Task, results: Sequence[Result], found: Sequence[Sequence[Difference]], remarks: Sequence[str]
) -> dict[str, Any]:
    models = []
    for result, to_first in zip(results, ((), *found), strict=True):
        entry: dict[str, Any] = {"model": result.contender.name, "learning_rate": result.recipe.learning_rate}
        for metric, values in zip(result.metrics, _values(result), strict=True):
            entry[metric.name] = {"mean": float(np.mean(values)), "seeds": values}
        for metric, each in zip(result.metrics, to_first, strict=False):
            entry[metric.name]["difference"] = {"mean": each.mean, "interval": [each.low, each.high]}
        models.append(entry)
    recipe = results[0].recipe
    names = "train", "test", "validation"
    files = {
        name: {"path": str(examples.path), "examples": len(examples)}
        for name, examples in zip(names, task.files, strict=False)
    }
    return {
        **files,
        "labels": task.labels,
        "epochs": recipe.epochs,
        "batch_size": recipe.batch(len(task.train)),
        "models": models,
        "remarks": list(remarks),
    }


def _write(comparison: Comparison, result: Result, output: Path) -> str:
    """Write the classifier of a result, and return a sentence about it."""
    contender = result.contender
    model = comparison.kind(contender.config, comparison.task.labels)
    assert result.state is not None, "the weights were asked for"
    model.load_state_dict(result.state)
    with replacing(output.absolute()) as aside:
        model.save_pretrained(aside)
        save_tokenizer(contender.tokenizer, aside, contender.config.max_position_embeddings)
    return f"{output} holds {contender.name}, fine-tuned with the first seed: a {model.architecture}"
