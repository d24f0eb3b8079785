"""The model card of an export: `README.md` with the metadata of the Hugging Face Hub, from what the run recorded.

It says what is known and no more: the licence, for example, is for whoever publishes the model to fill in. The format:
https://huggingface.co/docs/hub/model-cards.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import prod
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from lucid.analysis.report.facts import RunFacts
from lucid.analysis.report.facts_in_words import corpora_of, extent, objectives, results, shape
from lucid.analysis.report.settings import as_text
from lucid.analysis.report.tables import Table, corpora_table, side_by_side
from lucid.errors import CheckpointError
from lucid.files import written_aside
from lucid.models import BERTConfig
from lucid.models.bert import hub
from lucid.training.checkpoints.checkpoint import Checkpoint
from lucid.training.config.effects import curve_settings
from lucid.training.digests import Digests

CARD_FILE = "README.md"
# The cache of the Hub has each model in a folder of this name.
_IN_CACHE = re.compile(r"models--([\w.-]+?)(?:--([\w.-]+))?")
# The default of `lucid prepare --language`, which says nothing about the text.
_DEFAULT_LANGUAGE = "en"

_FILL = """from transformers import pipeline

# The path of this folder, or the model's name on the Hub.
fill = pipeline("fill-mask", model=".")
for guess in fill("Write a sentence with one [MASK] here."):
    print(guess["token_str"], guess["score"])"""
_ENCODE = """from transformers import AutoModel, AutoTokenizer

# The path of this folder, or the model's name on the Hub.
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModel.from_pretrained(".")
outputs = model(**tokenizer("Write a sentence here.", return_tensors="pt"))
print(outputs.last_hidden_state.shape)"""
_EMBED = """from sentence_transformers import SentenceTransformer

# The path of this folder, or the model's name on the Hub.
model = SentenceTransformer(".")
print(model.encode(["Write a sentence here."]).shape)"""


@dataclass(frozen=True)
class _Export:
    """The model in an exported folder: its shape, its number of parameters, and what it is for."""

    config: BERTConfig
    parameters: int
    fills_masks: bool
    judges_pairs: bool
    embeds: bool

    @classmethod
    def of(cls, folder: Path) -> "_Export":
        with safe_open(folder / hub.WEIGHTS_FILE, framework="numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, it is no dict
        return cls(
            config=hub.read_config(folder),
            parameters=sum(prod(each) for each in shapes.values()),
            fills_masks="cls.predictions.bias" in shapes,
            judges_pairs="cls.seq_relationship.bias" in shapes,
            embeds=(folder / "modules.json").exists(),
        )


def write_card(folder: Path, name: str, checkpoints: Sequence[Checkpoint]) -> None:
    """Write the card of the model in `folder`, called `name`, whose weights are the mean of those of the checkpoints.

    Without a checkpoint the card describes the model alone. Raises `CheckpointError` if it cannot be written.
    """
    content = card_of(folder, name, checkpoints)
    with written_aside(folder / CARD_FILE, CheckpointError) as file:
        file.write(content.encode("utf-8", "replace"))


def card_of(folder: Path, name: str, checkpoints: Sequence[Checkpoint]) -> str:
    """Return what `write_card` writes."""
    export = _Export.of(folder)
    run = RunFacts.of_checkpoint(checkpoints[-1].folder) if checkpoints else None
    metadata = yaml.safe_dump(_metadata(export, run), sort_keys=False, allow_unicode=True)
    sections = ["---", metadata.rstrip(), "---", "", f"# {_text(name)}", "", _origin(export, run), ""]
    sections += _use(export)
    if run is not None:
        sections += _training(run, checkpoints)
        sections += _results(run, checkpoints)
        sections += _digests(folder, checkpoints)
    sections += ["## What this card does not say", ""]
    sections.append(
        "lucid wrote this card from what the training run recorded. It knows neither the licence of the texts nor what "
        "they are about, and nobody has tested the model for a use or for bias. Whoever publishes the model should add "
        "`license`, `language` and `datasets` to the block at the top, and say here what the model is for."
    )
    return "\n".join(sections) + "\n"


def _metadata(export: _Export, run: RunFacts | None) -> dict[str, Any]:
    """Return the block at the top: what the Hub finds the model by. Nothing in it is a guess."""
    found: dict[str, Any] = {}
    if run is not None:
        languages = {str(corpus.preparation.get("language", _DEFAULT_LANGUAGE)) for corpus in run.corpora}
        if languages and _DEFAULT_LANGUAGE not in languages:
            found["language"] = sorted(languages)
    found["library_name"] = "sentence-transformers" if export.embeds else "transformers"
    task = "fill-mask" if export.fills_masks else "feature-extraction"
    found["pipeline_tag"] = "sentence-similarity" if export.embeds else task
    tags = ["bert", "pretraining", "lucid"]
    found["tags"] = ["sentence-transformers", "feature-extraction", *tags] if export.embeds else tags
    initial_model = run.config.initial_model if run is not None and run.config is not None else None
    if initial_model is not None and (hub_name := _hub_name(initial_model)):
        found["base_model"] = hub_name
    return found


def _hub_name(path: Path) -> str | None:
    """Return the name on the Hub of a model in the Hub's cache, None for a folder elsewhere, which may be any model."""
    for part in path.parts:
        if found := _IN_CACHE.fullmatch(part):
            return "/".join(filter(None, found.groups()))
    return None


def _origin(export: _Export, run: RunFacts | None) -> str:
    model = f"A BERT with {shape(export.config, export.parameters)}"
    if run is None or run.config is None:
        return f"{model}."
    config = run.config
    start = "from random weights"
    if config.initial_model is not None:
        start = f"from the weights of {_text(_hub_name(config.initial_model) or config.initial_model.name)}"
    elif config.initial_checkpoint is not None or config.branch_from is not None:
        start = "from the weights of an earlier run"
    return f"{model}, pretrained by {objectives(config)} on {_text(corpora_of(run))}, {start}."


def _use(export: _Export) -> list[str]:
    if export.embeds:
        code, more = _EMBED, "`lucid` and transformers load the folder as an encoder, too."
    elif export.fills_masks:
        code, more = _FILL, "`AutoModel` loads the encoder alone"
        more += ", and `BertForPreTraining` also the head for next-sentence prediction." if export.judges_pairs else "."
    else:
        code, more = _ENCODE, "The model has no head that fills [MASK]: fine-tune it for a task."
    return ["## How to use it", "", "```python", *code.splitlines(), "```", "", more, ""]


def _training(run: RunFacts, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    yield from ("## Training data", "")
    if run.corpora:
        yield from _table(corpora_table(run.corpora))
    else:
        yield from ("What the corpora held is not recorded.", "")
    yield from ("## Training", "")
    if len(checkpoints) > 1:
        steps = ", ".join(f"{checkpoint.state.step:,}" for checkpoint in checkpoints)
        yield f"The weights are the mean of those of {len(checkpoints)} checkpoints (steps {steps})."
        yield ""
    facts = {key: value for key, value in extent(run).items() if key not in ("state", "last line of the log")}
    if run.ranks:
        facts["ranks"] = f"{run.ranks:,}"
    if run.attempts and run.attempts[-1].processor:
        facts["processor"] = run.attempts[-1].processor
    if run.attempts and (devices := sorted({row.device for row in run.attempts[-1].locations} - {"cpu"})):
        facts["devices"] = ", ".join(devices)
    facts |= run.software
    yield from _table(side_by_side([""], [facts]))
    if run.config is not None:
        rows = tuple((f"`{key}`", as_text(value)) for key, value in curve_settings(run.config).items())
        yield from ("Settings that decide the losses, where they differ from lucid's defaults:", "")
        yield from _table(Table(("setting", "value"), rows))


def _results(run: RunFacts, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    if not (found := results(run)):
        return
    yield from ("## Results", "")
    if len(checkpoints) > 1:
        yield "These are of the newest of the checkpoints, not of the mean, which `lucid evaluate` measures."
        yield ""
    yield (
        "Held-out documents come from the same corpora, and were not trained on. Losses are in nats. The loss by token "
        "frequency is that of a model which knows only how often each token occurs; the loss by bigrams that of one "
        "which also knows the two tokens around each."
    )
    if run.logged.masking:
        yield f"{run.logged.masking[0].upper()}{run.logged.masking[1:]}; so the two losses do not compare."
    yield ""
    yield from _table(side_by_side([""], [found]))


def _digests(folder: Path, checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    yield from ("## Digests", "")
    if len(checkpoints) > 1:
        rows = tuple((f"{each.state.step:,}", f"`{each.weights_digest}`") for each in checkpoints)
        yield from ("SHA-256 of the weights of each checkpoint; `averaged.json` says what each comes from:", "")
        yield from _table(Table(("step", "weights"), rows))
        return
    digests = Digests.of(checkpoints[0]).exported(folder)
    rows = tuple((name, f"`{getattr(digests, name)}`") for name in ("weights", "corpus", "tokenizer", "settings"))
    yield from _table(Table(("SHA-256 of", "digest"), rows))
    yield (
        f"`sha256sum {hub.WEIGHTS_FILE}` prints the first. `digests.json` has all of them, and the versions that "
        "trained the model: with the same ones, the corpus and the settings, `lucid verify` says whether the same bits "
        "come out again."
    )
    yield ""


def _table(table: Table) -> Iterator[str]:
    """Yield the lines of a table in Markdown, and an empty one."""
    head = [_text(name) for name in table.columns]
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---:' if table.is_numeric(column) else '---' for column in range(len(head)))} |"
    yield from (f"| {' | '.join(map(_cell, row))} |" for row in table.rows)
    yield ""


def _cell(text: str) -> str:
    return text if re.fullmatch(r"`[^`|\n]*`", text) else _text(text)


def _text(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", escape(" ".join(text.split()), quote=False))
