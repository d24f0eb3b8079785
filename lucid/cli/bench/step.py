"""`lucid bench step`: measures where the time of a training step goes."""

import json
import random
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
import yaml

from lucid.analysis.breakdown import measure
from lucid.analysis.prediction.step_measurement import endless
from lucid.cli.bench.table import print_breakdown
from lucid.distributed import all_or_none, run_on_first_rank, session, watched
from lucid.errors import ConfigError
from lucid.models.bert.zoo import LARGE
from lucid.preparation import prepare
from lucid.training.config import NEVER, RunConfig, from_dict, load
from lucid.training.numerical_environment import limit_threads
from lucid.training.setup import communicator_of, open_run


class Size(StrEnum):
    """Models with a name."""

    SMALL = "small"
    BASE = "base"
    LARGE = "large"


_SHAPES: dict[Size, dict[str, int]] = {
    Size.SMALL: {
        "vocab_size": 4096, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    Size.BASE: {},
    Size.LARGE: LARGE,
}  # fmt: skip


def step(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [KEY=VALUE]...", help="The YAML file of a run, and settings that override it."
        ),
    ] = None,
    size: Annotated[
        Size | None, typer.Option(help="The model, without CONFIG. Default: base.", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=8, help="Tokens in a sequence, without CONFIG. Default: 128.", show_default=False)
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, help="Sequences in a step, over all ranks, without CONFIG. Default: 4.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Number of timed steps.")] = 5,
) -> None:
    """Print where the time of a training step goes: products, kernels, data, communication, optimizer, Python.

    The steps are those of a run of CONFIG, or of a new model on made-up text; nothing is written. Every second step
    has no timers, which shows their cost. MFU compares the model's FLOP/s with those of a layer's matrix products,
    run alone on all ranks at once.

    Examples:

        lucid bench step

        lucid bench step --size base --batch 2 train.precision=bfloat16

        OMP_NUM_THREADS=1 mpiexec -n 2 lucid bench step configs/small_cpu.yaml
    """
    given = list(settings or ())
    config = Path(given.pop(0)) if given and "=" not in given[0] else None
    if config and (size or length or batch):
        raise ConfigError(
            f"{config} says what to measure: change it by settings such as model.hidden_size=..., not by options"
        )
    with session() as group, TemporaryDirectory(prefix="lucid-bench-") as name:
        folder = Path(name)
        made_up = _made_up_settings(size or Size.BASE, length or 128, batch or 4)
        text = run_on_first_rank(group, lambda: json.dumps(_load(config, made_up, given, folder).as_dict()))
        run_config = from_dict(json.loads(text))
        if config is None:
            all_or_none(group, lambda: _make_corpus(folder))
        run_config = _to_measure(run_config, folder, None if config else folder / "corpus")
        limit_threads(run_config.threads_per_rank)
        with watched(group, run_config.train.watchdog_seconds):
            run = open_run(run_config, communicator_of(run_config, group))
            breakdown = measure(run, steps)
            if run.is_first:
                print_breakdown(run, breakdown)


def _made_up_settings(size: Size, length: int, batch: int) -> dict[str, Any]:
    return {
        "run_folder": "unused",
        "model": {**_SHAPES[size], "max_position_embeddings": max(512, length)},
        # Full sequences, so that the result does not depend on random padding.
        "data": {"path": "unused", "sequence_length": length, "short_sequence_probability": 0.0},
        "train": {"steps": NEVER, "global_batch": batch},
    }


def _load(config: Path | None, made_up: dict[str, Any], overrides: list[str], folder: Path) -> RunConfig:
    if config is None:
        config = folder / "made_up.yaml"
        config.write_text(yaml.safe_dump(made_up))
    return load(config, overrides)


def _to_measure(config: RunConfig, folder: Path, corpus: Path | None) -> RunConfig:
    """Return the settings of the run whose steps are measured: in `folder`, and without CUDA graphs, to time parts."""
    config = endless(config)
    train = config.train.model_copy(update={"cuda_graphs": False})
    data = config.data.model_copy(update={"path": corpus}) if corpus else config.data
    return config.model_copy(update={"run_folder": folder / "run", "train": train, "data": data})


def _make_corpus(folder: Path) -> None:
    """Prepare made-up text: words from random syllables, in documents much longer than a sequence."""
    draw = random.Random(0)
    syllables = [first + second for first in "bcdfgklmnprst" for second in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(2_000)]

    def document() -> str:
        return " ".join(" ".join(draw.choices(words, k=draw.randint(5, 25))) + "." for _ in range(200))

    (folder / "text.txt").write_text("\n\n".join(document() for _ in range(50)))
    prepare([folder / "text.txt"], folder / "corpus", vocab_size=2_000, held_out=0)
