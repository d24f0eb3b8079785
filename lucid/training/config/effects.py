"""What settings have an effect on: on the loss of a step, on its bits, or on neither."""

from typing import Any

from lucid.training.config.run_config import RunConfig

# What a run starts from and learns from. Two paths may lead to the same, and one path to another than before.
_SOURCES = {"initial_model", "initial_checkpoint", "branch_from", "data.path"}
# Settings that change no bit of a step: where files lie, and what a run keeps or reports.
_WITHOUT_EFFECT = _SOURCES | {
    *("run_folder", "data.workers", "data.prefetch"),
    *(f"train.{key}" for key in ("check_replicas_every", "audit_every", "keep_every", "keep_best", "patience")),
    *(f"train.{key}" for key in ("log_every", "checkpoint_every", "keep_checkpoints", "accept_changed", "tensorboard")),
    *(f"train.{key}" for key in ("evaluate_every", "evaluation_samples", "evaluate_also", "probe")),
    *(f"train.{key}" for key in ("watchdog_seconds", "trace")),
}
# Settings of how a step is computed, which change its loss by rounding at most; the last ones under the fast reduction
# alone.
_ROUNDING_ALWAYS = {"train.threads_per_rank", "train.device"}
_ROUNDING = _ROUNDING_ALWAYS | {
    "optimizer.sharded",
    *(f"train.{key}" for key in ("cuda_graphs", "recompute", "balance")),
    *(f"distributed.{key}" for key in ("backend", "bucket_megabytes")),
}


def curve_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide, with the corpora, the loss of each step, unless they are defaults.

    They are plain JSON values by dotted key. A run that starts from a model or from another run has the same ones.
    """
    found = by_dotted_key(config.model_dump(mode="json", exclude_defaults=True))
    return {key: value for key, value in found.items() if key not in _WITHOUT_EFFECT | _ROUNDING}


def bit_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide, with corpora, weights and number of ranks, the bits of each step.

    They are plain JSON values by dotted key.
    """
    without_effect = _WITHOUT_EFFECT | (_ROUNDING - _ROUNDING_ALWAYS if config.train.reduction == "exact" else set())
    found = by_dotted_key(config.as_dict()) | {"train.threads_per_rank": config.threads_per_rank}
    return {key: value for key, value in found.items() if key not in without_effect}


def settings_of_results(config: RunConfig) -> dict[str, Any]:
    """Return the settings by which results or speeds of runs may differ, defaults included: what is kept and reported
    is left out, but not where a run comes from. They are plain JSON values by dotted key.
    """
    found = by_dotted_key(config.as_dict())
    return {key: value for key, value in found.items() if key not in _WITHOUT_EFFECT - _SOURCES}


def by_dotted_key(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings in sections, as plain JSON values, by dotted key."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= {f"{name}.{key}": value[key] for key in value} if isinstance(value, dict) else {name: value}
    return found
