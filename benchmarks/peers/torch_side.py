"""PyTorch's side: `transformers`' model, fused AdamW, DDP over gloo. Started by `run.py`."""

import os
from collections.abc import Callable

import torch
from side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Settings, begin, serve
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from transformers import BertForPreTraining


class PretrainingLoss(torch.nn.Module):
    """The mean loss of the batch, from scores of the vocabulary at the masked positions only."""

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        mlm_labels: torch.Tensor,
        nsp_labels: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        hidden, pooled = self.model.bert(input_ids, token_type_ids=token_type_ids, return_dict=False)
        scores = self.model.cls.predictions(hidden.flatten(0, 1).index_select(0, positions))
        mlm = cross_entropy(scores, mlm_labels.flatten().index_select(0, positions))
        return mlm + cross_entropy(self.model.cls.seq_relationship(pooled), nsp_labels)


class PlainPretrainingLoss(torch.nn.Module):
    """The same loss as `transformers` computes it, from scores at all positions."""

    def __init__(self, model: BertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        mlm_labels: torch.Tensor,
        nsp_labels: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        return self.model(
            input_ids, token_type_ids=token_type_ids, labels=mlm_labels, next_sentence_label=nsp_labels
        ).loss


def build(settings: Settings) -> torch.nn.Module:
    side = settings.side
    # With dropout, PyTorch has no fused attention on the CPU: what it takes instead ("sdpa") is no faster than this.
    model = BertForPreTraining.from_pretrained(settings.folder, attn_implementation="eager")
    losses: torch.nn.Module = (PretrainingLoss if side.head == "masked" else PlainPretrainingLoss)(model)
    if side.compiled:
        losses.compile()
    return DistributedDataParallel(losses, gradient_as_bucket_view=True) if side.ranks > 1 else losses


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
