"""PyTorch's side: `transformers`' model, fused AdamW, DDP over gloo. Started by `run.py`."""

import os
from collections.abc import Callable

import torch
from side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Settings, begin, serve
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import BertForPreTraining

Tensors = dict[str, torch.Tensor]


def masked_loss(model: BertForPreTraining, batch: Tensors) -> torch.Tensor:
    """Return the mean loss of the batch, from scores of the vocabulary at the masked positions only."""
    hidden, pooled = model.bert(batch["input_ids"], token_type_ids=batch["token_type_ids"], return_dict=False)
    scores = model.cls.predictions(hidden.flatten(0, 1).index_select(0, batch["positions"]))
    mlm = cross_entropy(scores, batch["mlm_labels"].flatten().index_select(0, batch["positions"]))
    return mlm + cross_entropy(model.cls.seq_relationship(pooled), batch["nsp_labels"])


def plain_loss(model: BertForPreTraining, batch: Tensors) -> torch.Tensor:
    """Return the same loss as `transformers` computes it, from scores at all positions."""
    return model(
        batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
        labels=batch["mlm_labels"],
        next_sentence_label=batch["nsp_labels"],
    ).loss


class Loss(torch.nn.Module):
    """A loss of a model as a module, which DDP and the compiler ask for."""

    def __init__(self, model: BertForPreTraining, compute: Callable[[BertForPreTraining, Tensors], torch.Tensor]):
        super().__init__()
        self.model, self.compute = model, compute

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        return self.compute(self.model, batch)


def build(settings: Settings) -> torch.nn.Module:
    side = settings.side
    # With dropout, PyTorch has no fused attention on the CPU: what it takes instead ("sdpa") is no faster than this.
    model = BertForPreTraining.from_pretrained(settings.folder, attn_implementation="eager")
    loss: torch.nn.Module = Loss(model, masked_loss if side.head == "masked" else plain_loss)
    if side.compiled:
        loss.compile()
    return DistributedDataParallel(loss, gradient_as_bucket_view=True) if side.ranks > 1 else loss


def make_step(settings: Settings, rank: int) -> Callable[[bool], float]:
    model = build(settings)
    parameters = list(model.parameters())
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
    batch = {name: torch.from_numpy(array) for name, array in settings.batch(rank).items()}

    def step(dropout: bool) -> float:
        model.train(dropout)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.side.precision == "bfloat16"):
            loss = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)
        optimizer.step()
        return loss.item() / settings.side.ranks

    return step


def main() -> None:
    rank = int(os.environ["RANK"])
    settings = begin(rank)
    ranks = settings.side.ranks
    torch.set_num_threads(settings.side.threads)
    if ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{settings.address}.store", rank=rank, world_size=ranks
        )
    serve(settings, rank, make_step(settings, rank))
    if ranks > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
