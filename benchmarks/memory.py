"""Measures the peak memory of training BERT-base on one rank, here and, where it is installed, in PyTorch.

Every figure is of a process of its own, that takes a few whole steps (forward, backward, clipping, AdamW; dropout on,
the MLM head on the masked positions only): the largest share of the machine's memory that it held at once, in MiB.
Lucid's processes get the launcher's settings of the C library.

    python benchmarks/memory.py [--batch 4] [--length 128] [--steps 3] [--threads 1]
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

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


def lucid_step(batch: dict[str, np.ndarray], precision: str, recomputed: str) -> Callable[[], float]:
    import lucid
    from lucid import kernels, random
    from lucid.nn import flatten
    from lucid.optim import AdamW, clip_scale, global_norm

    kernels.set_precision(precision)
    model = lucid.models.bert_for_pre_training_base()
    if recomputed != "none":
        model.bert.encoder.recompute(recomputed)
    flat = flatten(model)
    optimizer = AdamW(flat)
    samples = np.arange(len(batch["input_ids"]))

    def step() -> float:
        flat.zero_grad()
        with random.at(random.Coordinates(0, optimizer.updates, samples)):
            mlm, nsp = model.branch_losses(**batch)
            (mlm.loss * (1 / mlm.count) + nsp.loss * (1 / nsp.count)).backward()
        optimizer.step(1e-4, clip_scale(global_norm(flat), 1.0))
        return mlm.loss.item() / mlm.count

    return step


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


def measure(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Take the steps in this process. Return its peak in MiB, the CPU time of the steps after the first, and a loss."""
    batch, settings = make_batch(options.batch, options.length), SIDES[side]
    step = lucid_step(batch, *settings) if settings else torch_step(batch)
    step()
    started = time.process_time()
    losses = [step() for _ in range(options.steps)]
    seconds = (time.process_time() - started) / options.steps
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak": peak, "seconds": seconds, "loss": losses[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="after a first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=SIDES, nargs="+", help="the sides to measure", default=list(SIDES))
    parser.add_argument("--here", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(options.here, options)))
        return

    print(
        f"BERT-base, {options.batch} x {options.length} tokens, {options.threads} threads; peak memory, CPU time a step"
    )
    for side in options.only:
        if side.startswith("torch") and not (
            importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")
        ):
            print(f"{side}: torch and transformers are not installed")
            continue
        threads = {f"{name}_NUM_THREADS": str(options.threads) for name in ("OMP", "OPENBLAS", "MKL", "NUMBA")}
        launcher = LAUNCHER if side.startswith("lucid") else {}
        command = [sys.executable, __file__, *sys.argv[1:], "--here", side]
        answer = subprocess.run(command, env=os.environ | threads | launcher, stdout=subprocess.PIPE, check=True).stdout
        found = json.loads(answer.splitlines()[-1])
        print(f"{side:38} {found['peak']:7,.0f} MiB {found['seconds']:8.2f} s   loss {found['loss']:.4f}", flush=True)


if __name__ == "__main__":
    main()
