"""`RunConfig`: all settings of a run, and the checks of those that depend on each other."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from lucid.data.masking_rate import MaskingRate
from lucid.errors import ConfigError
from lucid.files import split_packing
from lucid.models import BERTConfig
from lucid.training.config.paths import FilePath
from lucid.training.config.sections import (
    AUTO,
    DataSettings,
    DistributedSettings,
    OptimizerSettings,
    Settings,
    TrainSettings,
)
from lucid.training.config.shared_batch import SharedBatch


class RunConfig(Settings):
    """All settings of a run."""

    run_folder: FilePath = Field(
        description="Folder for checkpoints, metrics and plots; a run that is already there is resumed. In all paths "
        "~ and $NAME are expanded, and the expanded path is recorded; $$ is a $."
    )
    initial_model: FilePath | None = Field(
        None,
        description="Folder of a model to start from, in Hugging Face's format; heads that it lacks begin anew; null: "
        "random weights.",
    )
    initial_checkpoint: FilePath | None = Field(
        None,
        description="Run or checkpoint whose weights and moments a new run starts with; steps, data and schedule start "
        "from 0.",
    )
    branch_from: FilePath | None = Field(
        None,
        description="Run or checkpoint from which a new run branches: it takes over step, samples, weights and "
        "moments. The other run stays as it is.",
    )
    model: BERTConfig = Field(
        default_factory=BERTConfig,
        description="Section: the shape of the model. What it leaves out comes from the model or checkpoint that a run "
        "starts from, or else from BERT-base.",
    )
    data: DataSettings = Field(description="Section: the corpus, and how samples are made from it.")
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(), description="Section: the optimizer and the schedule of its learning rate."
    )
    train: TrainSettings = Field(description="Section: how long a run trains, how it computes, and what it records.")
    distributed: DistributedSettings = Field(DistributedSettings(), description="Section: how ranks communicate.")

    @field_validator("model", mode="before")
    @classmethod
    def _refuse_booleans_in_model(cls, value: Any) -> Any:
        for name, setting in value.items() if isinstance(value, dict) else ():
            if isinstance(setting, bool):
                raise ValueError(f"{name} takes neither true nor false")
        return value

    @model_validator(mode="after")
    def _check_combinations(self) -> "RunConfig":
        self._check_start()
        self._check_corpora()
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
        self._check_schedule()
        if self.data.mask_replace_probability + self.data.random_replace_probability > 1:
            raise ValueError("data.mask_replace_probability and data.random_replace_probability add up to more than 1")
        if self.masking_rate.changes and self.train.max_hours is not None:
            raise ValueError(
                "data.mlm_probability changes up to the last step, but with train.max_hours a run may end before: give "
                "one probability, or leave train.max_hours out"
            )
        if self.train.reduction == "exact":
            self._check_exact()
        if self.train.balance == "speed" and self.train.micro_batch is None:
            raise ValueError(
                "train.balance is speed, with which a fast rank gets more of the global batch: set train.micro_batch, "
                "the most that a rank computes at once, to bound its memory"
            )
        self._check_device()
        self._check_checkpoints()
        self._check_trace()
        self._check_probes()
        return self

    def _check_schedule(self) -> None:
        optimizer, steps = self.optimizer, self.train.steps
        if optimizer.warmup_steps >= steps:
            raise ValueError(
                f"optimizer.warmup_steps is {optimizer.warmup_steps}, but train.steps is {steps}: warm-up must end "
                "before training does"
            )
        if optimizer.final_learning_rate > optimizer.learning_rate:
            raise ValueError(
                f"optimizer.final_learning_rate is {optimizer.final_learning_rate}, above optimizer.learning_rate "
                f"({optimizer.learning_rate}), from which it decays"
            )
        decay_steps = optimizer.decay_steps
        if optimizer.schedule == "polynomial":
            if decay_steps is not None:
                raise ValueError(
                    f"optimizer.decay_steps is {decay_steps}, but optimizer.schedule is polynomial, which decays from "
                    "the end of warm-up: set optimizer.schedule to wsd, or leave optimizer.decay_steps out"
                )
            return
        if decay_steps is None:
            raise ValueError(
                "optimizer.schedule is wsd, which needs optimizer.decay_steps: a fifth of train.steps is usual, and 0 "
                "leaves the decay to a branch"
            )
        if optimizer.warmup_steps + decay_steps > steps:
            raise ValueError(
                f"optimizer.warmup_steps ({optimizer.warmup_steps}) and optimizer.decay_steps ({decay_steps}) add up "
                f"to more than train.steps ({steps})"
            )
        if optimizer.decay_power != 1:
            raise ValueError(
                f"optimizer.decay_power is {optimizer.decay_power}, but optimizer.schedule is wsd, which decays by "
                "1 - sqrt: leave optimizer.decay_power out"
            )

    def _check_device(self) -> None:
        if self.train.device == "cpu" and self.distributed.backend == "nccl":
            raise ValueError("distributed.backend is nccl, which is for GPUs: set train.device to cuda, or use auto")

        if self.train.device == "cuda" and self.train.audit_every is not None:
            raise ValueError(
                "train.audit_every compares gradients bit for bit, which holds between the processors of ranks, not "
                "between GPUs: leave it out, or set train.device to cpu"
            )

    def _check_checkpoints(self) -> None:
        every, keep_every = self.train.checkpoint_every, self.train.keep_every
        if keep_every is not None and keep_every % every:
            raise ValueError(
                f"train.keep_every is {keep_every}, but there are checkpoints every {every} steps: make it a multiple "
                "of train.checkpoint_every"
            )
        for name, wanted in (("keep_best", self.train.keep_best), ("patience", self.train.patience)):
            if wanted and self.train.evaluate_every is None:
                raise ValueError(
                    f"train.{name} is set, but a run without train.evaluate_every evaluates at its end only: set "
                    "train.evaluate_every, too"
                )

    def _check_trace(self) -> None:
        first, last = self.train.trace or (1, 1)
        if first > last or last > self.train.steps:
            raise ValueError(
                f"train.trace is [{first}, {last}], but a trace goes from one step to the same or a later one, up to "
                f"train.steps ({self.train.steps})"
            )

    def _check_probes(self) -> None:
        """Refuse two probes that have one name in the log."""
        seen: dict[str, Path] = {}
        for path in self.train.probes:
            if (other := seen.setdefault(os.path.abspath(split_packing(path)[0].with_suffix("")), path)) is not path:
                raise ValueError(
                    f"train.probe names {other} and {path}, which differ in their ending at most: rename one"
                )

    def _check_corpora(self) -> None:
        """Refuse a corpus that is named twice."""
        seen: dict[str, str] = {}
        for number, folder in enumerate(self.folders):
            key = "data.path" if number < len(self.data.folders) else "train.evaluate_also"
            path = os.path.abspath(folder)
            if path in seen:
                raise ValueError(f"{key} names {folder}, which {seen[path]} already names: name a corpus once")
            seen[path] = key

    def _check_start(self) -> None:
        names = [name for name in ("initial_model", "initial_checkpoint", "branch_from") if getattr(self, name)]
        if len(names) > 1:
            raise ValueError(f"{' and '.join(names)} are both set: a run starts from one of them")
        for name in names:
            source: Path = getattr(self, name)
            if name != "initial_model" and self.run_folder in (source, *source.parents):
                raise ValueError(
                    f"{name} lies in run_folder ({self.run_folder}), whose own run is resumed: choose another "
                    "run_folder for the new run"
                )

    def _check_exact(self) -> None:
        batch, micro_batch = self.train.global_batch, self.train.micro_batch
        if self.train.max_hours is not None:
            raise ValueError(
                "train.reduction is exact, but with train.max_hours the learning rate follows the clock, which no two "
                "runs share: leave one of them out"
            )
        if self.train.balance == "speed":
            raise ValueError(
                "train.reduction is exact, which sums micro-batches of adjacent rows, as many on each rank; "
                "train.balance=speed deals rows by measured times, which no two runs share: leave one of them out"
            )
        if micro_batch is None or micro_batch == AUTO:
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

    def shared_by(self, size: int) -> SharedBatch:
        """Return how `size` ranks share the global batch."""
        return SharedBatch(self.train, size, self.samples)

    def ranks_that_serve(self, most: int) -> int:
        """Return the largest number of ranks that may share the global batch, `most` or fewer; 0 if `most` is 0."""
        for size in range(min(most, self.train.global_batch), 0, -1):
            with suppress(ConfigError):
                self.shared_by(size).check()
                return size
        return 0

    @property
    def folders(self) -> list[Path]:
        """The folders of all corpora that a run opens: those that it trains on come first."""
        return [*self.data.folders, *self.train.evaluate_also]

    @property
    def samples(self) -> str:
        """The unit of `train.global_batch`, for messages."""
        return "packed rows" if self.data.packing else "sequences"

    def with_micro_batch(self, size: int) -> "RunConfig":
        """Return the same settings with another `train.micro_batch`."""
        return self.model_copy(update={"train": self.train.model_copy(update={"micro_batch": size})})

    @property
    def threads_per_rank(self) -> int | None:
        """The number of compute threads of a rank; None: the launcher decides."""
        return self.train.threads_per_rank or (1 if self.train.reduction == "exact" else None)

    @property
    def masking_rate(self) -> MaskingRate:
        """The fraction of the tokens to predict in each step."""
        match self.data.mlm_probability:
            case (first, last):
                return MaskingRate(first, last, self.train.steps)
            case rate:
                return MaskingRate.constant(rate)

    @property
    def sample_settings(self) -> dict[str, Any]:
        """The settings that decide, with the corpora, which samples each micro-batch of a step has: by dotted key."""
        data = self.data.model_dump(exclude={"path", "workers", "prefetch"})
        data["mlm_probability"] = self.masking_rate
        train = self.train.model_dump(include={"seed", "global_batch", "micro_batch"})
        return {f"{name}.{key}": part[key] for name, part in (("data", data), ("train", train)) for key in part}

    def as_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON values."""
        return self.model_dump(mode="json")
