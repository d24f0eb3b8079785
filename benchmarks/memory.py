"""Measures the peak memory of training BERT-base on one rank, here and, where it is installed, in PyTorch.

Each figure is of a process of its own that takes a few whole steps (forward, backward, clipping, AdamW; dropout on, the
MLM head on the masked positions only): the most memory that it held at once, in MiB. Lucid's processes get the
launcher's settings of the C library. Then, in one process and in turns: the CPU time of lucid's steps that recompute
over that of steps that do not, medians with spread.

    python benchmarks/memory.py [--batch 4] [--length 128] [--steps 2] [--turns 5] [--threads 1] [--only SIDE ...]
"""

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

VOCABULARY = 30522
SIDES = {
    "lucid float32": ("float32", "none"),
    "lucid float32, recompute: attention": ("float32", "attention"),
    "lucid float32, recompute: layer": ("float32", "layer"),
    "lucid bfloat16": ("bfloat16", "none"),
    "lucid bfloat16, recompute: attention": ("bfloat16", "attention"),
    "lucid bfloat16, recompute: layer": ("bfloat16", "layer"),
    "torch float32": None,
}
LAUNCHER = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def make_batch(rows: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    ids = generator.integers(5, VOCABULARY, (rows, length))
    masked = generator.random((rows, length)) < 0.15
    return {
        "input_ids": np.where(masked, 4, ids),
        "mlm_labels": np.where(masked, ids, -100),
        "nsp_labels": generator.integers(0, 2, rows),
        "token_type_ids": (np.arange(length) >= length // 2).astype(np.int64) + np.zeros((rows, 1), np.int64),
    }


def lucid_step(batch: dict[str, np.ndarray], precision: str) -> tuple[Any, Callable[[], float]]:
    """Return the model, and a function that takes a step and returns the loss."""
    import lucid
    from lucid import kernels, random
    from lucid.nn import flatten
    from lucid.optim import AdamW, OneProcess, clip_scale, global_norm

    kernels.set_precision(precision)
    model = lucid.models.bert_for_pre_training_base()
    flat = flatten(model)
    optimizer = AdamW(OneProcess(flat))
    samples = np.arange(len(batch["input_ids"]))

    def step() -> float:
        flat.zero_grad()
        with random.at(random.Coordinates.of(0, optimizer.updates, samples)):
            loss = model.get_loss(**batch)
            loss.backward()
        optimizer.step(1e-4, clip_scale(global_norm(optimizer.partition), 1.0))
        return loss.item()

    return model, step


def torch_step(batch: dict[str, np.ndarray]) -> Callable[[], float]:
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.BertForPreTraining(transformers.BertConfig()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01)
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    cross_entropy = torch.nn.functional.cross_entropy

    def step() -> float:
        optimizer.zero_grad()
        hidden, pooled = model.bert(tensors["input_ids"], token_type_ids=tensors["token_type_ids"], return_dict=False)
        masked = tensors["mlm_labels"] != -100
        mlm = cross_entropy(model.cls.predictions(hidden[masked]), tensors["mlm_labels"][masked])
        (mlm + cross_entropy(model.cls.seq_relationship(pooled), tensors["nsp_labels"])).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return mlm.item()

    return step


def measure(side: str, options: argparse.Namespace) -> tuple[float, float]:
    """Take the steps in this process. Return its peak in MiB, and the last loss."""
    batch, settings = make_batch(options.batch, options.length), SIDES[side]
    if settings is None:
        step = torch_step(batch)
    else:
        precision, recomputed = settings
        model, step = lucid_step(batch, precision)
        model.bert.encoder.recompute(recomputed)
    losses = [step() for _ in range(options.steps)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, losses[-1]


def measure_times(options: argparse.Namespace) -> None:
    """Print what recomputation costs."""
    model, step = lucid_step(make_batch(options.batch, options.length), "float32")
    step()
    ratios: dict[str, list[float]] = {"attention": [], "layer": []}
    for _ in range(options.turns):
        seconds = {}
        for part in ("none", *ratios):
            model.bert.encoder.recompute(part)
            started = time.process_time()
            step()
            seconds[part] = time.process_time() - started
        for part, found in ratios.items():
            found.append(seconds[part] / seconds["none"])
    for part, found in ratios.items():
        median, spread = statistics.median(found), f"{min(found):.2f} to {max(found):.2f}"
        print(f"CPU time, recompute: {part:17} x {median:.2f}  ({spread} in {options.turns} turns)")


def is_installed(side: str) -> bool:
    return side.startswith("lucid") or all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def run_here(options: argparse.Namespace, *arguments: str) -> str:
    """Run this file once more, with the same options and `arguments`, and return what it prints."""
    threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
    launcher = {} if "torch float32" in arguments else LAUNCHER
    command = [sys.executable, __file__, *sys.argv[1:], *arguments]
    return subprocess.run(
        command, env=os.environ | threads | launcher, stdout=subprocess.PIPE, check=True, text=True
    ).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=SIDES, nargs="+", help="the sides to measure", default=list(SIDES))
    parser.add_argument("--here", choices=(*SIDES, "times"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here == "times":
        measure_times(options)
    elif options.here:
        print(json.dumps(measure(options.here, options)))
    else:
        print(f"BERT-base, {options.batch} x {options.length} tokens, {options.threads} threads")
        for side in filter(is_installed, options.only):
            peak, loss = json.loads(run_here(options, "--here", side).splitlines()[-1])
            print(f"{side:38} {peak:7,.0f} MiB   loss {loss:.4f}", flush=True)
        if options.turns:
            print(run_here(options, "--here", "times"), end="")


if __name__ == "__main__":
    main()
