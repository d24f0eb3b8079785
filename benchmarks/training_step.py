"""Times a training step of BERT here and, where PyTorch and transformers are installed, the same step there.

Forward, backward, clipping and AdamW on one process, dropout on, the MLM head on the masked positions only on both
sides, one fixed batch. The two sides take turns; printed are medians of sequences a second, and the median of the
ratios of each turn.

    python benchmarks/training_step.py [--size small|base] [--length 128] [--batch 8] [--turns 5]
                                       [--precision bfloat16]
"""

import argparse
import os
import statistics
import time
import typing
from collections.abc import Callable

import numpy as np

import lucid
from lucid import kernels, random
from lucid.kernels import Precision, threads
from lucid.models import BERTConfig, BERTForPreTraining
from lucid.nn import flatten
from lucid.optim import AdamW, clip_scale, global_norm

SIZES = {
    "small": {"vocab_size": 4096, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
              "intermediate_size": 512},
    "base": {},
}  # fmt: skip


def make_batch(config: BERTConfig, rows: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    ids = generator.integers(5, config.vocab_size, (rows, length))
    masked = generator.random((rows, length)) < 0.15
    return {
        "input_ids": np.where(masked, 4, ids),
        "mlm_labels": np.where(masked, ids, -100),
        "nsp_labels": generator.integers(0, 2, rows),
        "token_type_ids": (np.arange(length) >= length // 2).astype(np.int64) + np.zeros((rows, 1), np.int64),
    }


def lucid_step(config: BERTConfig, batch: dict[str, np.ndarray]) -> Callable[[], float]:
    lucid.manual_seed(0)
    model = BERTForPreTraining(config)
    flat = flatten(model)
    optimizer = AdamW(flat)
    samples = np.arange(len(batch["input_ids"]))

    def step() -> float:
        flat.zero_grad()
        with random.at(random.Coordinates(0, optimizer.updates, samples)):
            loss = model.get_loss(**batch)
            loss.backward()
        optimizer.step(1e-4, clip_scale(global_norm(flat), 1.0))
        return loss.item()

    return step


def torch_step(config: BERTConfig, batch: dict[str, np.ndarray]) -> Callable[[], float] | None:
    try:
        import torch
        import transformers
    except ImportError:
        return None
    from dataclasses import asdict

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    model = transformers.BertForPreTraining(transformers.BertConfig(**asdict(config))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01)
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    cross_entropy = torch.nn.functional.cross_entropy

    def step() -> float:
        optimizer.zero_grad()
        hidden, pooled = model.bert(tensors["input_ids"], token_type_ids=tensors["token_type_ids"], return_dict=False)
        labels = tensors["mlm_labels"]
        masked = labels != -100
        loss = cross_entropy(model.cls.predictions(hidden[masked]), labels[masked])
        loss = loss + cross_entropy(model.cls.seq_relationship(pooled), tensors["nsp_labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def rate(step: Callable[[], float], rows: int, seconds: float) -> float:
    """Return sequences a second over steps that take at least `seconds`."""
    started, steps = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        step()
        steps += 1
    return steps * rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="least time of a turn on each side")
    parser.add_argument("--precision", choices=typing.get_args(Precision), default="float32", help="of lucid's side")
    options = parser.parse_args()

    kernels.set_precision(options.precision)
    config = BERTConfig(**SIZES[options.size])
    batch = make_batch(config, options.batch, options.length)
    sides = {"lucid": lucid_step(config, batch), "torch": torch_step(config, batch)}
    steps = {name: step for name, step in sides.items() if step is not None}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.turns):
        for name, step in steps.items():
            rates[name].append(rate(step, options.batch, options.seconds))
    print(f"{options.size}, length {options.length}, {options.batch} sequences a step, one process")
    print(f"precision of lucid: {options.precision}; products: {kernels.product_library()}; threads: {threads.count()}")
    for name, values in rates.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:6} {statistics.median(values):8.2f} sequences/s  ({spread} in {options.turns} turns)")
    if "torch" in rates:
        ratios = [ours / theirs for ours, theirs in zip(rates["lucid"], rates["torch"], strict=True)]
        print(f"ratio  {statistics.median(ratios):8.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
