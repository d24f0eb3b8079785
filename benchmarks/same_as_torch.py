"""Trains one model twice, here and in PyTorch, and draws the two loss curves and their difference.

Both sides have the same initial weights, batches (lucid's), learning rates, clipping, weight decay and AdamW, in
float32 and without dropout; PyTorch's is `BertForPreTraining` of transformers, on one process, and lucid's runs on
several ranks. Needs torch, transformers and matplotlib. In the folder of the output lie then `lucid/metrics.jsonl` and
`torch.jsonl`, one line a step, `curves.png`, and both models, which are evaluated on the held-out documents.

Rounding errors grow in training, so that the curves of equal mathematics part. As a yardstick, lucid takes the first
steps once more, `--again` of them, in micro-batches half as large: the same sums, in another order.

    python benchmarks/same_as_torch.py --data CORPUS --output FOLDER [--steps 2000] [--again 400] [--ranks 2] ...

Interrupted, the same command goes on: lucid from its newest checkpoint, PyTorch from the last hundred steps.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from matplotlib.figure import Figure

import lucid
from lucid.data import Corpus
from lucid.models import BERTForPreTraining
from lucid.training.config import RunConfig, load
from lucid.training.corpora import open_corpora
from lucid.training.schedule import schedule_of

LAUNCHER = Path(__file__).parents[1] / "launch" / "mpirun.sh"
# Steps of the running mean that is compared as well: single steps differ more.
MEAN_OVER = 50
# Where the steps are divided in what is printed.
STRETCHES = 100, 200, 400
# Steps of PyTorch's side from one saved state to the next.
SAVED_EVERY = 100


def write_settings(options: argparse.Namespace) -> RunConfig:
    """Write the run's settings and initial weights to the output, and return the settings."""
    folder = options.output
    settings = {
        "run_folder": str(folder / "lucid"),
        "initial_model": str(folder / "initial"),
        "model": {
            "vocab_size": Corpus.open(options.data).vocab_size,
            "hidden_size": options.hidden_size,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.hidden_size // 64,
            "intermediate_size": 4 * options.hidden_size,
            "max_position_embeddings": options.length,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "data": {"path": str(options.data), "sequence_length": options.length},
        "optimizer": {"learning_rate": options.learning_rate, "warmup_steps": options.steps // 10},
        "train": {
            "steps": options.steps,
            "global_batch": options.global_batch,
            "micro_batch": options.micro_batch,
            "log_every": 1,
            "evaluation_samples": 4096,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    config = load(folder / "run.yaml")
    if not (folder / "initial").exists():
        lucid.manual_seed(0)
        BERTForPreTraining(config.model).save_pretrained(folder / "initial")
    return config


def train_in_lucid(ranks: int, folder: Path, name: str, *overrides: str) -> None:
    """Train as `run.yaml` says, but for `overrides`, in `folder / name`; what the run prints goes to `name`.log."""
    log_file = folder / f"{name}.log"
    print(f"lucid: see {log_file}", flush=True)
    with log_file.open("w") as log:
        command = [LAUNCHER, "-n", str(ranks), folder / "run.yaml", f"run_folder={folder / name}", *overrides]
        subprocess.run(command, check=True, stdout=log, env=os.environ | {"PYTHON": sys.executable})


def first_steps(config: RunConfig, steps: int) -> list[str]:
    """Return the settings that make `config` a run of its first `steps`, the same but for the order of sums."""
    schedule = schedule_of(config)
    return [
        f"train.steps={steps}",
        f"optimizer.final_learning_rate={schedule.learning_rate(steps)}",
        f"train.micro_batch={config.train.micro_batch // 2}",
    ]


def train_in_torch(config: RunConfig, folder: Path) -> None:
    """Train as `config` says, write `torch.jsonl` and the model."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    model = transformers.BertForPreTraining.from_pretrained(config.initial_model).train()
    settings, steps, schedule = config.optimizer, config.train.steps, schedule_of(config)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        betas=settings.betas,
        eps=settings.epsilon,
    )
    first = resume(model, optimizer, folder)
    sampler, started = open_corpora(config).train, time.perf_counter()
    with (folder / "torch.jsonl").open("a") as file:
        for step in range(first, steps):
            batch = sampler.batch(step * config.train.global_batch, range(config.train.global_batch))
            arrays = {name: torch.from_numpy(np.asarray(array)).long() for name, array in vars(batch).items()}
            loss = gradients(model, arrays, batch.masked_tokens, config.train.micro_batch)
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_gradient_norm)
            for group in optimizer.param_groups:
                group["lr"] = schedule.learning_rate(step)
            optimizer.step()
            file.write(json.dumps({"step": step + 1, "loss": loss}) + "\n")
            if (step + 1) % SAVED_EVERY == 0:
                file.flush()
                save(model, optimizer, step + 1, folder)
                took = time.perf_counter() - started
                print(f"torch: step {step + 1}/{steps}  loss {loss:.3f}  {took:,.0f} s", flush=True)
    model.save_pretrained(folder / "torch")


def save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, folder: Path) -> None:
    """Keep what `resume` needs, in a file that is whole or not there."""
    state = {"steps": steps, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(state, folder / "unfinished.pt")
    (folder / "unfinished.pt").replace(folder / "torch.pt")


def resume(model: torch.nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Go back to what was saved last, if anything was; return how many steps that had taken."""
    steps, losses_file = 0, folder / "torch.jsonl"
    if (folder / "torch.pt").exists():
        state = torch.load(folder / "torch.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        steps = state["steps"]
    lines = losses_file.read_text().splitlines(keepends=True) if steps else []
    losses_file.write_text("".join(lines[:steps]))
    return steps


def gradients(model: torch.nn.Module, batch: dict[str, torch.Tensor], masked: int, micro_batch: int) -> float:
    """Leave the gradients of the loss of lucid, over the whole batch, in `model`, and return the loss."""
    model.zero_grad()
    total, rows = 0.0, len(batch["nsp_labels"])
    for part in ({name: array[start : start + micro_batch] for name, array in batch.items()} for start in
                 range(0, rows, micro_batch)):  # fmt: skip
        # A row is one sequence, so their numbers are a mask.
        hidden, pooled = model.bert(part["input_ids"], part["sequence_ids"], part["token_type_ids"], return_dict=False)
        labels = part["mlm_labels"]
        scores = model.cls.predictions(hidden[labels >= 0])
        cross_entropy = torch.nn.functional.cross_entropy
        loss = cross_entropy(scores, labels[labels >= 0], reduction="sum") / masked
        loss = loss + cross_entropy(model.cls.seq_relationship(pooled), part["nsp_labels"], reduction="sum") / rows
        loss.backward()
        total += loss.item()
    return total


def losses(path: Path) -> np.ndarray:
    """Return float64 [steps]: the loss of each step in a file of JSON lines."""
    lines: Iterator[dict[str, float]] = map(json.loads, path.read_text().splitlines())
    return np.array([line["loss"] for line in lines if "loss" in line])


def draw(ours: np.ndarray, theirs: np.ndarray, again: np.ndarray, picture: Path) -> None:
    """Draw both curves, and below them their difference, and that of the steps that lucid took `again`."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    curves, difference = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    steps = np.arange(1, len(ours) + 1)
    curves.plot(steps, theirs, color="tab:orange", linewidth=3, alpha=0.6, label="PyTorch")
    curves.plot(steps, ours, color="tab:blue", linewidth=0.8, label="lucid")
    curves.set(ylabel="training loss, MLM + NSP (nats)")
    curves.legend()
    difference.plot(steps, ours - theirs, color="gray", linewidth=0.6, label="lucid - PyTorch, of single steps")
    if len(again):
        itself = ours[: len(again)] - again
        difference.plot(steps[: len(again)], itself, color="tab:green", linewidth=0.6, label="lucid - lucid again")
    means = running_mean(ours - theirs)
    difference.plot(
        steps[len(steps) - len(means) :],
        means,
        color="black",
        linewidth=1,
        label=f"lucid - PyTorch, mean of {MEAN_OVER}",
    )
    difference.set(xlabel="step", ylabel="difference")
    difference.margins(y=0.25)
    difference.legend(ncols=3, loc="upper left", fontsize="small")
    for axes in (curves, difference):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Return the means over each run of `MEAN_OVER` values, or over all if they are fewer."""
    width = min(MEAN_OVER, len(values))
    return np.convolve(values, np.ones(width) / width, mode="valid")


def report(name: str, difference: np.ndarray) -> None:
    """Print how large the differences of single steps and of means over `MEAN_OVER` are: of all, and of stretches."""
    bounds = [*(bound for bound in STRETCHES if bound < len(difference)), len(difference)]
    print(f"{name}: mean of {MEAN_OVER} steps {np.abs(running_mean(difference)).max():.1e} at most; of a step")
    for start, stop in [(0, len(difference)), *pairwise([0, *bounds])]:
        sizes = np.abs(difference[start:stop])
        at = start + sizes.argmax() + 1
        print(f"  {start + 1:5}-{stop:<5}  mean {sizes.mean():.1e}, at most {sizes.max():.1e} (step {at})")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a prepared corpus")
    parser.add_argument("--output", type=Path, required=True, help="a folder")
    parser.add_argument("--ranks", type=int, default=2, help="of lucid")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--again", type=int, default=0, metavar="STEPS", help="steps that lucid takes once more")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--global-batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    options = parser.parse_args()
    if options.again and not options.steps // 10 < options.again <= options.steps:
        parser.error("--again takes more steps than the warm-up, a tenth of --steps, and no more than --steps")
    if options.again and options.micro_batch < 2:
        parser.error("--again halves the micro-batches: --micro-batch takes 2 or more")
    return options


def main() -> None:
    options = parse()
    folder = options.output
    config = write_settings(options)
    train_in_lucid(options.ranks, folder, "lucid")
    if options.again:
        train_in_lucid(options.ranks, folder, "again", *first_steps(config, options.again))
    train_in_torch(config, folder)

    ours, theirs = losses(folder / "lucid" / "metrics.jsonl"), losses(folder / "torch.jsonl")
    itself = losses(folder / "again" / "metrics.jsonl") if options.again else np.zeros(0)
    draw(ours, theirs, itself, folder / "curves.png")
    print(f"\n{len(ours)} steps; the loss falls from {theirs[0]:.4f} to {running_mean(theirs)[-1]:.4f}")
    report("lucid - torch", ours - theirs)
    if options.again:
        report(f"lucid - torch, {options.again} steps", (ours - theirs)[: options.again])
        report("lucid - lucid again", ours[: options.again] - itself)
    for side in ("lucid", "torch"):
        corpus = ["--data", str(options.data), "--sequence-length", str(options.length)]
        print(f"{side:6}", end=" ", flush=True)
        subprocess.run([sys.executable, "-m", "lucid", "evaluate", str(folder / side), *corpus], check=True)


if __name__ == "__main__":
    main()
