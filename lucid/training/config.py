"""The settings of a run: YAML -> frozen, validated objects. Unknown keys and impossible combinations are errors.

`load(file, overrides)` is the way in; every message names the file (or the command line) and the dotted key.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from lucid.distributed.communicators.between_nodes import WireDtype
from lucid.distributed.connection import Backend
from lucid.errors import ConfigError
from lucid.kernels import AttentionKind, Precision
from lucid.models import BERTConfig
from lucid.models.bert.encoder import Recomputation
from lucid.training.yaml_text import LARGEST, parse_yaml

# Mistakes told at once.
_MOST_SENTENCES = 20
# Characters shown of a value.
_LONGEST_VALUE = 100


def _is_named(path: Any) -> Any:
    if path == "":
        raise ValueError("a path cannot be empty")
    return path


def _can_be_opened(path: Path) -> Path:
    """Refuse what no file can be called."""
    name = str(path)
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in name):
        raise ValueError("a path cannot hold this character")
    if max(len(part.encode()) for part in (*path.parts, "")) > 255 or len(name.encode()) >= 4096:
        raise ValueError("a path cannot be this long")
    return path


FilePath = Annotated[Path, BeforeValidator(_is_named), AfterValidator(_can_be_opened)]
# By default no rank waits longer than this for another.
WATCHDOG_SECONDS = 600.0
# Steps and samples are 32-bit coordinates of the random numbers.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """Base of all sections: frozen, and nothing is accepted that has no meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("neither true nor false can stand here")
        return value


class DataSettings(Settings):
    """What is read, and how samples are made of it."""

    path: FilePath = Field(description="folder of a prepared corpus (lucid prepare)")
    sequence_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a sequence, with [CLS] and [SEP]")
    short_sequence_probability: Share = Field(0.1, description="share of samples made shorter on purpose")
    mlm_probability: Share = Field(0.15, description="share of the tokens to predict")
    max_predictions: Count | None = Field(None, description="most tokens to predict in a sequence; default: the share")
    mask_replace_probability: Share = Field(0.8, description="share of these that become [MASK]")
    random_replace_probability: Share = Field(0.1, description="share of these that become a random token")
    whole_word_mask: bool = Field(False, description="the pieces of a word are masked together or not at all")
    nsp: bool = Field(True, description="pairs for next-sentence prediction; false: one segment, MLM only")
    packing: bool = Field(False, description="several short sequences in a row, which do not attend to each other")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(1, description="threads a rank that make batches; 0: none")
    prefetch: Count = Field(4, description="batches made ahead")


class OptimizerSettings(Settings):
    """How weights follow gradients."""

    name: Literal["adamw", "lamb"] = "adamw"
    learning_rate: Positive = Field(1e-4, description="the peak, at the end of warm-up")
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = 0
    decay_power: Positive = Field(1.0, description="polynomial decay from the end of warm-up to the last step")
    final_learning_rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0, description="where the decay ends; more than 0 where another run goes on with it"
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    epsilon: Positive = 1e-6
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    bias_correction: bool = Field(True, description="false: as in the original BERT")
    max_gradient_norm: Positive = Field(1.0, description="clip the global norm to this")
    sharded: bool = Field(
        False, description="divide moments and updates over the ranks; those of a node share one copy of the weights"
    )


class TrainSettings(Settings):
    """How long, how much at once, and what is kept."""

    steps: Count = Field(description="updates of the weights")
    max_hours: Positive | None = Field(
        None, description="end after this time in training too, the learning rate decaying to it; default: steps alone"
    )
    global_batch: Count = Field(description="sequences a step, over all ranks; rows of them with data.packing")
    micro_batch: Count | None = Field(None, description="most sequences a rank runs at once; default: its whole share")
    reduction: Literal["fast", "exact"] = Field(
        "fast", description="how gradients are summed; exact: the same bits on any number of ranks, but slower"
    )
    threads_per_rank: Count | None = Field(
        None, description="threads of a rank's matrix products; default: as launched, or 1 if the reduction is exact"
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="what ranks compute on; cuda: a GPU of NVIDIA's each (extra: cuda13 or cuda12)"
    )
    precision: Precision = Field(
        "float32",
        description="of what matrix products multiply; bfloat16 takes oneDNN on a CPU (extra: onednn), and on a GPU is "
        "that of activations too",
    )
    attention: AttentionKind = Field(
        "auto", description="on a GPU: cuDNN's, which takes bfloat16 without dropout, or the kernels of lucid"
    )
    cuda_graphs: bool = Field(True, description="on a GPU: launch the kernels of a micro-batch together")
    recompute: Recomputation = Field(
        "none", description="what is computed again in backward rather than kept, for less memory: attention or layer"
    )
    check_replicas_every: Count = Field(500, description="steps between comparisons of the ranks' weights")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    log_every: Count = Field(10, description="steps between lines of the log")
    checkpoint_every: Count = Field(1000, description="steps between checkpoints; one is always written at the end")
    keep_checkpoints: Count = Field(2, description="newest checkpoints kept")
    accept_changed: tuple[Literal["corpus", "tokenizer", "seed"], ...] = Field(
        (), description="what may differ from the checkpoint that a run goes on from: corpus, tokenizer, seed"
    )
    evaluate_every: Count | None = Field(None, description="steps between evaluations; default: at the end only")
    evaluation_samples: Count = Field(512, description="held-out samples an evaluation takes")
    max_skipped_steps: Count = Field(10, description="steps in a row with a gradient that is not finite, at most")
    watchdog_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        WATCHDOG_SECONDS,
        description="ranks that wait longer for one that does not come end the run, six times as long where it starts, "
        "evaluates or saves; 0: they wait for ever",
    )
    tensorboard: bool = Field(False, description="write TensorBoard events too (extra: tensorboard)")


class DistributedSettings(Settings):
    """How ranks communicate."""

    backend: Backend = Field(
        "auto",
        description="what carries gradients; auto: shared memory within nodes where it can, else MPI; between GPUs "
        "NCCL where it can, else these two through the host",
    )
    bucket_megabytes: Positive = Field(25.0, description="gradients that are reduced together")
    wire_dtype: WireDtype = Field(
        "float32",
        description="what gradients travel as between nodes, or over NCCL; bfloat16: rounded, in half of the bytes",
    )


class RunConfig(Settings):
    """A whole run.

    `model.vocab_size` may exceed the tokenizer's, to pad the vocabulary to a size that computes faster.
    """

    run_folder: FilePath = Field(description="where checkpoints, metrics and plots go; a run there is resumed")
    initial_model: FilePath | None = Field(None, description="folder of a model to start from (Hugging Face's format)")
    initial_checkpoint: FilePath | None = Field(
        None, description="run, or checkpoint, to take weights and moments from; steps, data and schedule begin anew"
    )
    model: BERTConfig = Field(default_factory=BERTConfig)
    data: DataSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    train: TrainSettings
    distributed: DistributedSettings = DistributedSettings()

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        self._check_start()
        longest = self.model.max_position_embeddings
        if self.data.sequence_length > longest:
            raise ValueError(
                f"data.sequence_length is {self.data.sequence_length}, but model.max_position_embeddings is {longest}: "
                "raise the latter or shorten the sequences"
            )
        if self.data.nsp and self.model.type_vocab_size < 2:
            raise ValueError(
                f"model.type_vocab_size is {self.model.type_vocab_size}, but pairs for next-sentence prediction have "
                "two segments: set it to 2, or data.nsp to false"
            )
        if self.optimizer.warmup_steps >= self.train.steps:
            raise ValueError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps}, but train.steps is {self.train.steps}: "
                "warm-up has to end before training does"
            )
        if self.optimizer.final_learning_rate > self.optimizer.learning_rate:
            raise ValueError(
                f"optimizer.final_learning_rate is {self.optimizer.final_learning_rate}, above optimizer.learning_rate "
                f"({self.optimizer.learning_rate}), from which it decays"
            )
        if self.data.mask_replace_probability + self.data.random_replace_probability > 1:
            raise ValueError("data.mask_replace_probability and data.random_replace_probability add up to more than 1")
        if self.train.reduction == "exact":
            self._check_exact()
        self._check_device()
        return self

    def _check_device(self) -> None:
        if self.train.device == "cpu" and self.distributed.backend == "nccl":
            raise ValueError("distributed.backend is nccl, which is for GPUs: set train.device to cuda, or use auto")
        if self.train.attention != "cudnn":
            return
        if self.train.device == "cpu":
            raise ValueError("train.attention is cudnn, which is for GPUs: set train.device to cuda, or use auto")
        if self.train.precision != "bfloat16" or self.model.attention_probs_dropout_prob > 0:
            raise ValueError(
                "train.attention is cudnn, which takes bfloat16 and no dropout: set train.precision to bfloat16 and "
                "model.attention_probs_dropout_prob to 0, or use auto"
            )

    def _check_start(self) -> None:
        checkpoint = self.initial_checkpoint
        if checkpoint is None:
            return
        if self.initial_model is not None:
            raise ValueError("initial_model and initial_checkpoint are both set: a run starts from one of them")
        if self.run_folder in (checkpoint, *checkpoint.parents):
            raise ValueError(
                f"initial_checkpoint lies in run_folder ({self.run_folder}), where a run goes on as it was: choose "
                "another run_folder for what starts from it"
            )

    def _check_exact(self) -> None:
        batch, micro_batch = self.train.global_batch, self.train.micro_batch
        if self.train.max_hours is not None:
            raise ValueError(
                "train.reduction is exact, but with train.max_hours the learning rate follows the clock, which no two "
                "runs share: leave one of them out"
            )
        if micro_batch is None:
            raise ValueError(
                "train.reduction is exact, which sums micro-batches in a fixed order: set train.micro_batch, a divisor "
                f"of train.global_batch ({batch})"
            )
        if batch % micro_batch:
            raise ValueError(
                f"train.reduction is exact, but train.micro_batch ({micro_batch}) does not divide train.global_batch "
                f"({batch})"
            )
        if self.distributed.wire_dtype != "float32":
            raise ValueError(
                f"train.reduction is exact, but distributed.wire_dtype is {self.distributed.wire_dtype}, which rounds "
                "gradients between nodes only, so that the number of nodes changes the sums: use float32"
            )

    def check_ranks(self, size: int) -> None:
        """Raise `ConfigError` unless `size` ranks can share the global batch as the reduction needs it."""
        batch, micro_batch = self.train.global_batch, self.train.micro_batch
        if batch % size:
            raise ConfigError(
                f"train.global_batch is {batch}, which {size} ranks cannot share evenly: make it a multiple of {size}, "
                "or start another number of ranks"
            )
        if self.train.reduction == "exact" and micro_batch:
            leaves = batch // micro_batch
            if size & (size - 1) or leaves % size:
                allowed = [str(2**power) for power in range(leaves.bit_length()) if leaves % 2**power == 0]
                raise ConfigError(
                    f"train.reduction is exact: {leaves} micro-batches (train.global_batch / train.micro_batch) can be "
                    f"summed on {' or '.join(allowed)} ranks, not on {size}: start another number, or use "
                    "train.reduction=fast"
                )

    def exact_micro_batches(self, size: int) -> int | None:
        """Return how many micro-batches each of `size` ranks adds to the exact reduction, None for the fast one."""
        if self.train.reduction == "fast" or self.train.micro_batch is None:
            return None
        return self.train.global_batch // size // self.train.micro_batch

    @property
    def samples(self) -> str:
        """What `train.global_batch` counts, in words."""
        return "packed rows" if self.data.packing else "sequences"

    def sequences_at_once(self, size: int) -> int:
        """Return the most samples that each of `size` ranks runs at once."""
        share = self.train.global_batch // size
        return min(self.train.micro_batch or share, share)

    @property
    def threads_per_rank(self) -> int | None:
        """How many threads a rank's matrix products take; None: as many as the launcher said."""
        return self.train.threads_per_rank or (1 if self.train.reduction == "exact" else None)

    def as_yaml(self) -> str:
        """Return all settings, defaults included, as YAML that `load` takes, with what they mean as comments."""
        lines = []
        for name, value in self.as_dict().items():
            section = getattr(self, name)
            if isinstance(value, dict):
                described = type(section).model_fields if isinstance(section, Settings) else {}
                lines += [f"{name}:", *(f"  {_described(key, value[key], described.get(key))}" for key in value)]
            else:
                lines.append(_described(name, value, type(self).model_fields[name]))
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return self.model_dump(mode="json")


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's settings from a YAML file; `overrides` are `dotted.key=value`, the value in YAML.

    Raises `ConfigError` with one sentence for each thing that is wrong.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there: give the path of a run's YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it takes sections such as data, model and train")
    overridden = [_apply(content, override) for override in overrides]
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        sentences = [_sentence(item, path, overridden) for item in error.errors()[:_MOST_SENTENCES]]
        raise ConfigError("\n".join(sentences)) from error


def _described(name: str, value: Any, field: FieldInfo | None) -> str:
    """Return a line of YAML: a setting, its value, and what it means."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).removesuffix("\n...\n")
    comment = f"  # {field.description}" if field and field.description else ""
    return f"{name}: {text.strip()}{comment}"


def from_dict(content: dict[str, Any]) -> RunConfig:
    """Return the settings that `as_dict` gave. Raises `ConfigError` if they are another version's."""
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(
            f"the settings were written by another version of lucid: {error.errors()[0]['msg']}"
        ) from error


def _apply(content: dict[str, Any], override: str) -> str:
    """Set one `dotted.key=value` in `content` and return the key."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"{override!r} on the command line is not of the form section.key=value")
    section = content
    for name in names[:-1]:
        inner = section.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r} on the command line: {name} is not a section")
        section = inner
    try:
        section[names[-1]] = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{override!r} on the command line: the value is not valid YAML: {error}") from error
    return ".".join(names)


def _sentence(item: Any, path: Path, overrides: Sequence[str]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    overridden = any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in overrides)
    where = "the command line" if overridden else str(path)
    match item["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            close = difflib.get_close_matches(key, _known_keys(), n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]}?" if close else "; `lucid train --print-config` lists the known ones"
            return f"{where}: the key {key} is unknown{hint}"
        case "missing":
            # A part of a value, such as the second of two numbers, has no description of its own.
            return f"{where}: the key {key} is missing: {_known_keys().get(key, 'the value is not whole')}"
        case "value_error":
            message = str(item["ctx"]["error"])
            return f"{where}: {f'{key}: ' if key else ''}{message}"
        case _:
            message = item["msg"][0].lower() + item["msg"][1:]
            return f"{where}: {key} is {_shown(item['input'])}, but {message.replace('input should', 'it should')}"


def _shown(value: object) -> str:
    """Return `value` as Python writes it, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _known_keys() -> dict[str, str]:
    """Return all dotted keys with their descriptions."""
    keys = {}
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        keys[name] = field.description or "a section of settings"
        if isinstance(section, type) and issubclass(section, Settings):
            inner = section.model_fields.items()
            keys |= {f"{name}.{key}": setting.description or "a setting" for key, setting in inner}
    return keys | {f"model.{field.name}": "as in Hugging Face's config.json" for field in fields(BERTConfig)}
