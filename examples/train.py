"""Pretrains a small BERT: the loop of `lucid train` in its plainest form, on one rank or several.

    python examples/train.py data/python-docs runs/by_hand
    lucid launch -n 2 examples/train.py data/python-docs runs/by_hand

The corpus comes from `lucid prepare`. Any number of ranks up to GLOBAL_BATCH takes the same steps, up to rounding.
Started again, the program goes on from its last checkpoint, perhaps on another number of ranks.
"""

import argparse
from pathlib import Path

import numpy as np

import lucid
from lucid import data, distributed, models, optim, random

SEED, LENGTH, GLOBAL_BATCH, MICRO_BATCH, SAVE_EVERY = 1, 64, 32, 8, 50
SHAPE = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}


def main(corpus_folder: Path, folder: Path, steps: int) -> None:
    communicator = distributed.connect()
    if communicator.size > GLOBAL_BATCH:
        raise SystemExit(f"{communicator.size} ranks cannot share batches of {GLOBAL_BATCH} samples: start fewer")
    lucid.manual_seed(SEED)
    corpus = data.Corpus.open(corpus_folder)
    sampler = data.Sampler(corpus, data.SamplerSettings(sequence_length=LENGTH), SEED)
    model = models.BERTForPreTraining(models.BERTConfig(vocab_size=corpus.vocab_size, **SHAPE))
    ddp = distributed.DistributedDataParallel(model, communicator)
    optimizer = optim.AdamW(ddp.parameters(), weight_decay=0.01)
    schedule = optim.WarmupPolynomialDecay(peak=1e-3, warmup_steps=steps // 10, steps=steps)
    first_step = resume(folder / "checkpoint", model, optimizer)

    # Which samples of each global batch are this rank's.
    samples = np.arange(communicator.rank, GLOBAL_BATCH, communicator.size)
    losses: list[float] = []  # this rank's parts of the losses since the last print
    for step in range(first_step, steps):
        batch = sampler.batch(step * GLOBAL_BATCH, samples)
        masked = communicator.all_reduce_scalar(batch.masked_tokens)
        *others, last = (batch.slice(start, start + MICRO_BATCH) for start in range(0, len(samples), MICRO_BATCH))
        ddp.zero_grad()
        with ddp.accumulate():
            parts = [backward(model, part, step, masked) for part in others]
        parts.append(backward(model, last, step, masked))  # meanwhile the gradients are summed over ranks
        losses.append(sum(parts))
        optimizer.lr = schedule.learning_rate(step)
        optimizer.step(gradient_scale=optim.clip_scale(optimizer.gradient_norm(), 1.0))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            loss = communicator.all_reduce_scalar(sum(losses)) / len(losses)
            losses.clear()
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            if communicator.rank == 0:
                print(f"step {step + 1:4}  loss {loss:.4f}  learning rate {optimizer.lr:.1e}")
                folder.mkdir(parents=True, exist_ok=True)
                lucid.save(state, folder / "checkpoint")

    if communicator.rank == 0:
        model.save_pretrained(folder / "model")
        data.save_tokenizer(data.load_tokenizer(corpus.tokenizer_folder), folder / "model")
    communicator.close()


def backward(model: models.BERTForPreTraining, part: data.Batch, step: int, masked: float) -> float:
    """Add the gradients of a micro-batch, and return its part of the global loss.

    The loss is a sum, divided by global counts: so losses and gradients of micro-batches and ranks add up.
    """
    with random.at(random.Coordinates.of(SEED, step, part.samples)):  # dropout is that of the sample, on any rank
        loss = model.get_loss(
            part.mlm_labels,
            part.nsp_labels,
            part.input_ids,
            attention_mask=part.attention_mask,
            token_type_ids=part.token_type_ids,
            reduction="sum",
            mlm_weight=1 / masked,
            nsp_weight=1 / GLOBAL_BATCH,
        )
    loss.backward()
    return float(loss)


def resume(checkpoint: Path, model: models.BERTForPreTraining, optimizer: optim.AdamW) -> int:
    """Load the checkpoint, if there is one, and return the step to begin with."""
    if not checkpoint.exists():
        return 0
    state = lucid.load(checkpoint)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretrain a small BERT on a corpus of lucid prepare.")
    parser.add_argument("corpus", type=Path, help="folder of the corpus")
    parser.add_argument("output", type=Path, help="folder for the checkpoint and the model")
    parser.add_argument("--steps", type=int, default=200, help="steps in all (default: 200)")
    arguments = parser.parse_args()
    main(arguments.corpus, arguments.output, arguments.steps)
