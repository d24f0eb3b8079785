"""lucid's side: what `lucid train` does in a step with `optimizer.sharded`, on the fixed batch. Started by `run.py`."""

import numpy as np
from side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Settings, begin, serve

from lucid import kernels, random
from lucid.distributed import Communicator, DistributedDataParallel, choose, session
from lucid.distributed.communicators.announcement import announced
from lucid.models import BERTForPreTraining
from lucid.optim import AdamW, clip_scale, global_norm


def train(settings: Settings, communicator: Communicator) -> None:
    kernels.set_precision(settings.side.precision)
    model = BERTForPreTraining.from_pretrained(settings.folder)
    ddp = DistributedDataParallel(model, communicator, sharded=True)
    optimizer = AdamW(ddp.partition, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
    batch = settings.batch(communicator.rank)
    positions = batch.pop("positions")
    share = len(batch["input_ids"])
    samples = np.arange(communicator.rank * share, (communicator.rank + 1) * share)
    mlm_weight, nsp_weight = 1 / (len(positions) * communicator.size), 1 / settings.rows

    def step(dropout: bool) -> float:
        model.train(dropout)
        ddp.zero_grad()
        with random.at(random.Coordinates.of(0, optimizer.updates, samples)):
            loss = model.get_loss(**batch, mlm_weight=mlm_weight, nsp_weight=nsp_weight, reduction="sum")
            loss.backward()
        optimizer.step(LEARNING_RATE, clip_scale(global_norm(ddp.partition), MAX_NORM))
        return loss.item()

    serve(settings, communicator.rank, step)


if __name__ == "__main__":
    announcement = announced()
    settings = begin(announcement.rank if announcement else 0)
    with session() as group:
        train(settings, choose(group, "auto"))
