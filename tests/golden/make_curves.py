"""Makes `curves.jsonl`: the logs of short runs of small models, healthy ones and ones with planted faults.

    python tests/golden/make_curves.py data/py data/de data/tiny runs/small_cpu

takes about three minutes on one core (OMP_NUM_THREADS=1). The first three arguments are corpora that `lucid prepare
--vocab-size 1024` made: of Python's documentation (`python-docs`); of German documentation, 8 MB, namely the handbook,
the reference and the developers' reference of Debian, and the help of GIMP and LibreOffice; and of a text so small that
the model learns it by heart, 34 kB of English in 11 documents (`--held-out 0.5` holds out 3 of them). The last argument
is the run that `make train` makes.

Each curve has its `settings`, its `fault` ("" of a healthy run), and the columns of its log, to four digits. With other
texts the curves differ a little, and one that is close to a threshold may get another fault: look at what
tests/training/test_explanations.py says of it.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lucid.data import Batch, Mixture
from lucid.distributed import StopRequest
from lucid.distributed.communicators.single import SingleCommunicator
from lucid.kernels.masking import IGNORE_INDEX
from lucid.training import run
from lucid.training.config import from_dict
from lucid.training.log.metrics import log_of

HERE = Path(__file__).parent
VOCABULARY = 1024
SETTINGS: dict[str, dict[str, Any]] = {
    "model": {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 256,
        "max_position_embeddings": 32,
        "hidden_act": "gelu_new",
        "initializer_range": 0.05,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "data": {"sequence_length": 32, "mlm_probability": 0.3, "workers": 0},
    "optimizer": {"learning_rate": 3e-3, "warmup_steps": 40, "betas": [0.9, 0.98]},
    "train": {"steps": 500, "global_batch": 16, "log_every": 5, "evaluate_every": 100, "evaluation_samples": 256},
}
RATE, STEPS, WARMUP, SEED = "optimizer.learning_rate", "train.steps", "optimizer.warmup_steps", "train.seed"
LAYERS, EVALUATE = "model.num_hidden_layers", "train.evaluate_every"

# Of each curve: its corpus, its fault, how batches are spoilt, and settings.
Curve = tuple[str, str, str, dict[str, Any]]
CURVES: dict[str, Curve] = {
    "py": ("py", "", "", {}),
    "py, slowly": ("py", "", "", {RATE: 1e-3}),
    "py, longer": ("py", "", "", {STEPS: 1000}),
    "py, deeper": ("py", "", "", {LAYERS: 4, RATE: 2e-3, STEPS: 400}),
    "de": ("de", "", "", {SEED: 1}),
    "de, slowly": ("de", "", "", {RATE: 1e-3, SEED: 1}),
    "py, rate x 10": ("py", "rate", "", {RATE: 3e-2}),
    "de, rate x 2": ("de", "late", "", {RATE: 6e-3, SEED: 1}),
    "de, rate x 10": ("de", "stuck", "", {RATE: 3e-2, SEED: 1}),
    "py, rate x 30": ("py", "rate", "", {RATE: 0.1, STEPS: 300}),
    "py, rate x 2": ("py", "stuck", "", {RATE: 6e-3}),
    "py, no warm-up": ("py", "warm-up", "", {WARMUP: 0, RATE: 1e-2, LAYERS: 4, STEPS: 300}),
    "py, rate / 30": ("py", "slow", "", {RATE: 1e-4}),
    "py, rate / 300": ("py", "slow", "", {RATE: 1e-5, STEPS: 300}),
    "py, shuffled labels": ("py", "labels", "mlm", {}),
    "py, rate x 30 after a long warm-up": ("py", "rising", "", {WARMUP: 400, RATE: 0.1}),
    "py, bad batches": ("py", "spikes", "spikes 250 380", {SEED: 40, STEPS: 450}),
    "tiny": ("tiny", "overfitting", "", {SEED: 1, STEPS: 600, EVALUATE: 60, "data.nsp": False}),
}
# The keys of the log that explanations use.
KEYS = ("step", "mlm_loss", "nsp_loss", "gradient_norm", "learning_rate", "skipped_steps", "epoch")
HELD_OUT_KEYS = ("step", *(f"held_out_{name}_loss" for name in ("mlm", "nsp", "frequency", "bigram")))


def recipe(name: str) -> dict[str, Any]:
    """Return the settings of a recipe."""
    settings: dict[str, Any] = yaml.safe_load((HERE.parents[1] / "configs" / f"{name}.yaml").read_text())
    return settings


def settings_of(curve: Curve, folders: dict[str, Path]) -> dict[str, Any]:
    """Return the settings of a curve's run."""
    corpus, _, _, changes = curve
    settings = json.loads(json.dumps(SETTINGS))
    settings["data"]["path"] = str(folders[corpus])
    for name, value in changes.items():
        section, _, key = name.partition(".")
        settings[section][key] = value
    return settings


def spoilt(how: str, make: Callable[..., Batch]) -> Callable[..., Batch]:
    """Return what makes batches as `make` does, with labels that cannot be learnt: in all steps, or in some."""
    name, *steps = how.split()

    def batch(mixture: Mixture, consumed: int, *others: Any) -> Batch:
        made = make(mixture, consumed, *others)
        labels, draws = made.mlm_labels.copy(), np.random.default_rng(consumed)
        masked = labels != IGNORE_INDEX
        if name == "mlm":
            labels[masked] = draws.permutation(labels[masked])
        elif str(consumed // SETTINGS["train"]["global_batch"] + 1) in steps:
            labels[masked] = draws.integers(5, VOCABULARY, masked.sum())
        return replace(made, mlm_labels=labels)

    return batch


def columns(entries: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, list[float | None]]:
    """Return the columns of the entries that have the second key, to four digits."""
    rows = [entry for entry in entries if keys[1] in entry]
    return {key: [_short(row.get(key)) for row in rows] for key in keys}


def _short(value: float | None) -> float | None:
    return value if value is None or isinstance(value, int) else float(f"{value:.4g}")


def trained(curve: Curve, folders: dict[str, Path]) -> list[dict[str, Any]]:
    """Train the run of a curve, and return its log."""
    make = Mixture.batch
    with tempfile.TemporaryDirectory() as folder:
        if curve[2]:
            Mixture.batch = spoilt(curve[2], make)  # type: ignore[method-assign]
        try:
            settings = {**settings_of(curve, folders), "run_folder": folder}
            run(from_dict(settings), SingleCommunicator(), StopRequest())
        finally:
            Mixture.batch = make  # type: ignore[method-assign]
        return log_of(Path(folder))


def recorded(fault: str, settings: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `curves.jsonl` has of a curve."""
    return {
        "fault": fault,
        "settings": settings,
        "training": columns(entries, KEYS),
        "held_out": columns(entries, HELD_OUT_KEYS),
    }


if __name__ == "__main__":
    *folders, readme = map(Path, sys.argv[1:])
    corpora = dict(zip(("py", "de", "tiny"), folders, strict=True))
    found = {
        name: recorded(curve[1], settings_of(curve, corpora), trained(curve, corpora)) for name, curve in CURVES.items()
    }
    found["README"] = recorded("", recipe("small_cpu"), log_of(readme))
    (HERE / "curves.jsonl").write_text("".join(json.dumps({name: curve}) + "\n" for name, curve in found.items()))
