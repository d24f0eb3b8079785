"""The sections of a run's settings: each setting with its default, its range and a description for users."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from lucid.distributed.communicators.between_nodes import WireDtype
from lucid.distributed.connection import Backend
from lucid.kernels import Precision
from lucid.models.bert.encoder import Recomputation
from lucid.training.config.paths import FilePath

# The default of `train.watchdog_seconds`, and of commands that have no settings.
WATCHDOG_SECONDS = 600.0


# Steps and samples are 32-bit coordinates of the random numbers.
PositiveInteger = Annotated[int, Field(ge=1, lt=2**31)]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeNumber = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list | tuple) else [value]
        if (
            any(isinstance(each, bool) for each in values)
            and cls.model_fields[str(info.field_name)].annotation is not bool
        ):
            raise ValueError("it takes neither true nor false")
        return value


# The section `model` is a `BERTConfig`.
MODEL_DESCRIPTIONS = {
    "vocab_size": "Tokens in the vocabulary; more than the tokenizer has pads it to a size that computes faster.",
    "hidden_size": "Width of the activations; a multiple of num_attention_heads.",
    "num_hidden_layers": "Encoder layers.",
    "num_attention_heads": "Attention heads in each layer.",
    "intermediate_size": "Width of the feed-forward layers, usually 4 x hidden_size.",
    "hidden_act": "Activation function of the feed-forward layers: gelu, gelu_new (its tanh form, faster) or relu.",
    "hidden_dropout_prob": "Dropout probability of embeddings and layer outputs, from 0 to below 1.",
    "attention_probs_dropout_prob": "Dropout probability of attention weights, from 0 to below 1.",
    "max_position_embeddings": "Longest sequence that the model takes, in tokens.",
    "type_vocab_size": "Kinds of segments; pairs of sentences (data.nsp) need 2.",
    "initializer_range": "Standard deviation of the initial weights.",
    "layer_norm_eps": "Added to the variance in layer normalisation.",
    "pad_token_id": "Number of the token [PAD] in the tokenizer.",
}


class WeightedCorpus(Settings):
    """One of several corpora."""

    path: FilePath
    weight: PositiveNumber

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_values(cls, value: Any) -> Any:
        if not isinstance(value, dict | WeightedCorpus):
            raise ValueError("one of several corpora is {path: FOLDER, weight: NUMBER}")
        return value

    def __repr__(self) -> str:
        """Return it as users write it, for messages."""
        return f"{{path: {self.path}, weight: {self.weight:g}}}"


# Which form of `data.path` a value has, so that a message is about that form alone.
PATH_FORMS = ("one folder", "several corpora")


def _path_form(value: Any) -> str:
    return PATH_FORMS[isinstance(value, list | tuple)]


# As above, of `data.mlm_probability`.
RATE_FORMS = ("one rate", "first and last rate")


def _rate_form(value: Any) -> str:
    return RATE_FORMS[isinstance(value, list | tuple)]


class DataSettings(Settings):
    """The corpus or corpora, and how samples are made from them."""

    path: Annotated[
        Annotated[FilePath, Tag(PATH_FORMS[0])] | Annotated[tuple[WeightedCorpus, ...], Tag(PATH_FORMS[1])],
        Discriminator(_path_form),
    ] = Field(
        description="Folder of the corpus, made by lucid prepare; or a list of {path, weight}: each of these corpora "
        "gives samples in proportion to its weight."
    )
    sequence_length: Annotated[int, Field(ge=8)] = Field(
        128, description="Tokens in a sequence, [CLS] and [SEP] included; at least 8."
    )
    short_sequence_probability: Fraction = Field(
        0.1, description="Fraction of samples that are shortened at random, as in BERT; 0 to 1."
    )
    mlm_probability: Annotated[
        Annotated[Fraction, Tag(RATE_FORMS[0])] | Annotated[tuple[Fraction, Fraction], Tag(RATE_FORMS[1])],
        Discriminator(_rate_form),
    ] = Field(
        0.15,
        description="Fraction of the tokens to predict, 0 to 1; or [FIRST, LAST]: it changes linearly from the first "
        "step to the last.",
    )
    max_predictions: PositiveInteger | None = Field(
        None, description="Most tokens to predict in a sequence; null: mlm_probability alone decides."
    )
    mask_replace_probability: Fraction = Field(0.8, description="Fraction of the tokens to predict that become [MASK].")
    random_replace_probability: Fraction = Field(
        0.1, description="Fraction of the tokens to predict that become a random token; the rest stay as they are."
    )
    whole_word_mask: bool = Field(False, description="Whether all pieces of a word are masked together.")
    nsp: bool = Field(
        True, description="Whether samples are pairs for next-sentence prediction; false: one segment, MLM only."
    )
    packing: bool = Field(
        False, description="Whether a row holds several short sequences, which do not attend to each other."
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        1, description="Threads in each rank that make batches; 0: batches are made between steps; at most 256."
    )
    prefetch: Annotated[int, Field(ge=1, le=1024)] = Field(
        4, description="Batches that each rank makes ahead; at most 1024."
    )

    @field_validator("path", mode="before")
    @classmethod
    def _refuse_other_forms(cls, value: Any) -> Any:
        if isinstance(value, dict) or value in ([], ()):
            raise ValueError("several corpora are a list of one or more: [{path: FOLDER, weight: NUMBER}, ...]")
        return value

    @property
    def corpora(self) -> tuple[WeightedCorpus, ...]:
        """The corpora with their weights, also if there is only one."""
        if isinstance(self.path, tuple):
            return self.path
        return (WeightedCorpus.model_construct(path=self.path, weight=1.0),)

    @property
    def folders(self) -> list[Path]:
        """The folders of the corpora."""
        return [corpus.path for corpus in self.corpora]


class OptimizerSettings(Settings):
    """The optimizer and the schedule of its learning rate."""

    name: Literal["adamw", "lamb"] = Field(
        "adamw", description="Optimizer: adamw, or lamb for global batches of thousands of sequences."
    )
    learning_rate: PositiveNumber = Field(1e-4, description="Peak of the learning rate, at the end of warm-up.")
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="Steps in which the learning rate rises to its peak; fewer than train.steps."
    )
    schedule: Literal["polynomial", "wsd"] = Field(
        "polynomial",
        description="What follows warm-up: polynomial, a decay to the last step; or wsd, the peak until the last "
        "decay_steps, which decay by 1 - sqrt.",
    )
    decay_power: PositiveNumber = Field(
        1.0,
        description="Power of the polynomial decay from the end of warm-up to the last step; 1: linear. Not with wsd.",
    )
    decay_steps: Annotated[int, Field(ge=0, lt=2**31)] | None = Field(
        None,
        description="Last steps in which the learning rate decays; wsd needs it. 0: the run ends at the peak, and a "
        "branch (branch_from) decays.",
    )
    final_learning_rate: NonNegativeNumber = Field(
        0.0, description="Learning rate at the end of the decay; above 0 if another run is to start from this one."
    )
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.999), description="Decay rates of the first and second moments, each from 0 to below 1."
    )
    epsilon: PositiveNumber = Field(1e-6, description="Added to the root of the second moment in an update.")
    weight_decay: NonNegativeNumber = Field(
        0.01, description="Weight decay, decoupled from the gradient; biases and layer normalisation have none."
    )
    bias_correction: bool = Field(
        True, description="Whether the moments are corrected for their start at zero; false: as in the original BERT."
    )
    max_gradient_norm: PositiveNumber = Field(1.0, description="The gradient is scaled down to this global norm.")
    sharded: bool = Field(
        False,
        description="Whether ranks divide moments and updates among themselves; ranks of a node then share one copy "
        "of the weights.",
    )


# As above, of `train.probe`.
PROBE_FORMS = ("one file", "several files")


def _probe_form(value: Any) -> str:
    return PROBE_FORMS[isinstance(value, list | tuple)]


# As above, of `train.micro_batch`.
SIZE_FORMS = ("a number", "a word")
AUTO: Literal["auto"] = "auto"


def _size_form(value: Any) -> str:
    return SIZE_FORMS[isinstance(value, str)]


class TrainSettings(Settings):
    """How long a run trains, how it computes, and what it records."""

    steps: PositiveInteger = Field(description="Updates of the weights.")
    max_hours: PositiveNumber | None = Field(
        None,
        description="Most hours of training; the learning rate then decays to its end in that time. Only training time "
        "counts, in this attempt and earlier ones. null: steps alone.",
    )
    global_batch: PositiveInteger = Field(
        description="Sequences in a step, over all ranks; with data.packing, rows. At least one for each rank."
    )
    micro_batch: (
        Annotated[
            Annotated[PositiveInteger, Tag(SIZE_FORMS[0])] | Annotated[Literal["auto"], Tag(SIZE_FORMS[1])],
            Discriminator(_size_form),
        ]
        | None
    ) = Field(
        None,
        description="Most sequences that a rank computes at once; null: all of its part of the global batch; auto: as "
        "many as its memory has room for and its speed gains from, not if reduction is exact.",
    )
    reduction: Literal["fast", "exact"] = Field(
        "fast", description="How gradients are summed; exact: bit for bit the same on any number of ranks, but slower."
    )
    balance: Literal["length", "speed"] = Field(
        "length",
        description="How ranks share a step; length: equal numbers of sequences, and about equal work; speed: work by "
        "each rank's measured speed, so that others need not wait for a slow one.",
    )
    threads_per_rank: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Compute threads of a rank, at most 1,024; null: the launcher's choice, or 1 if reduction is "
        "exact.",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="Device of the ranks; cuda: one NVIDIA GPU each (extra: cuda13 or cuda12)."
    )
    precision: Precision = Field(
        "float32",
        description="Precision of the inputs of matrix products, and on a GPU of activations; bfloat16 on a CPU needs "
        "oneDNN.",
    )
    cuda_graphs: bool = Field(
        True, description="Whether a GPU runs the kernels of a micro-batch as one CUDA graph, which is faster."
    )
    recompute: Recomputation = Field(
        "none",
        description="Activations that backward computes again, to save memory: none, attention, or layer.",
    )
    check_replicas_every: PositiveInteger = Field(
        500, description="Steps between checks that all ranks hold the same weights."
    )
    audit_every: PositiveInteger | None = Field(
        None,
        description="Steps between audits, in which each rank also computes a micro-batch of another one, on another "
        "host if possible, and compares the gradients: they find a processor that miscomputes. null: none.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Seed of weights, data order, masks and dropout; from 0 to below 2**63."
    )
    log_every: PositiveInteger = Field(10, description="Steps between lines of the log.")
    checkpoint_every: PositiveInteger = Field(
        1000, description="Steps between checkpoints; the last step always has one."
    )
    keep_checkpoints: PositiveInteger = Field(2, description="Checkpoints kept, the newest ones.")
    keep_every: PositiveInteger | None = Field(
        None,
        description="Checkpoints of multiples of so many steps are kept for ever, besides the newest; a multiple of "
        "checkpoint_every; null: none.",
    )
    keep_best: bool = Field(
        False,
        description="Whether the step with the least held-out loss (MLM + NSP) so far has a checkpoint, which is kept "
        "besides the newest; needs evaluate_every. patience keeps it, too.",
    )
    patience: PositiveInteger | None = Field(
        None,
        description="The run ends after so many evaluations in a row without a smaller held-out loss, and keeps its "
        "best checkpoint as with keep_best; needs evaluate_every; null: it does not.",
    )
    accept_changed: tuple[Literal["corpus", "tokenizer", "seed"], ...] = Field(
        (), description="What may differ from the checkpoint that a run resumes from: corpus, tokenizer, seed."
    )
    evaluate_every: PositiveInteger | None = Field(
        None, description="Steps between evaluations on held-out documents; null: at the end only."
    )
    evaluation_samples: PositiveInteger = Field(
        512, description="Most held-out samples in an evaluation, of each corpus."
    )
    evaluate_also: tuple[FilePath, ...] = Field(
        (),
        description="Folders of other corpora whose held-out documents are evaluated too, each on its own line: it "
        "shows what a model forgets.",
    )
    probe: Annotated[
        Annotated[FilePath, Tag(PROBE_FORMS[0])] | Annotated[tuple[FilePath, ...], Tag(PROBE_FORMS[1])],
        Discriminator(_probe_form),
    ] = Field(
        (),
        description="File of labelled texts (.tsv, .csv or .jsonl, also compressed), or a list of such files. Each "
        "evaluation predicts their labels from the hidden states by logistic regression, and reports the accuracy; "
        "training reads none.",
    )
    max_skipped_steps: PositiveInteger = Field(
        10, description="Most steps in a row that are skipped because the gradient is not finite; one more is an error."
    )
    watchdog_seconds: NonNegativeNumber = Field(
        WATCHDOG_SECONDS,
        description="Seconds that ranks wait for a missing one before the run ends; six times as long while it starts, "
        "evaluates or saves; 0: no limit.",
    )
    trace: tuple[PositiveInteger, PositiveInteger] | None = Field(
        None,
        description="First and last step of a trace, a file trace-FIRST-LAST.json.gz in run_folder that shows on a "
        "time line what each rank did when; null: none.",
    )
    tensorboard: bool = Field(
        False, description="Whether metrics are written as TensorBoard events too (extra: tensorboard)."
    )

    @property
    def micro_batch_size(self) -> int | None:
        """The number in `micro_batch`; None for all, and with `auto` until the start of a run has chosen it."""
        return None if self.micro_batch == AUTO else self.micro_batch

    @property
    def probes(self) -> tuple[Path, ...]:
        """The files of all probes."""
        return self.probe if isinstance(self.probe, tuple) else (self.probe,)

    @property
    def keeps_best(self) -> bool:
        """Whether the best step keeps its checkpoint: a run that patience ends has trained past it."""
        return self.keep_best or self.patience is not None


class DistributedSettings(Settings):
    """How ranks communicate."""

    backend: Backend = Field(
        "auto",
        description="What carries gradients; auto: shared memory within a node and MPI between nodes, NCCL between "
        "GPUs, or whatever of these is available.",
    )
    bucket_megabytes: PositiveNumber = Field(
        25.0, description="MiB of gradients that are reduced together while backward goes on."
    )
    wire_dtype: WireDtype = Field(
        "float32",
        description="Type of gradients on their way between nodes, or over NCCL; bfloat16 rounds them and halves the "
        "traffic.",
    )
