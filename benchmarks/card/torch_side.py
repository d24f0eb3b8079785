"""PyTorch's side on a card: `transformers`' model with scaled_dot_product_attention, compiled, under autocast.

Started by `benchmarks/gpu_step.py`: python -m card.torch_side WORKLOAD FOLDER [MODE OF THE COMPILER]. Without a GPU it
computes on the CPU, to be tried out.
"""

import sys

import torch
import transformers
from card.serving import serve
from card.workloads import Workload
from peers.side import BETAS, EPSILON, LEARNING_RATE, MAX_NORM, WEIGHT_DECAY
from torch.nn.functional import cross_entropy

UNCOMPILED = "eager"


class Loss(torch.nn.Module):
    """The mean MLM loss, of scores at the masked positions only, plus the NSP loss."""

    def __init__(self, model: transformers.BertForPreTraining) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        bert, heads = self.model.bert, self.model.cls
        hidden, pooled = bert(batch["input_ids"], token_type_ids=batch["token_type_ids"], return_dict=False)
        scores = heads.predictions(hidden.flatten(0, 1).index_select(0, batch["positions"]))
        mlm = cross_entropy(scores, batch["masked_labels"])
        return mlm + cross_entropy(heads.seq_relationship(pooled), batch["nsp_labels"])


class TorchSide:
    """Trains in bfloat16 with fused AdamW."""

    def __init__(self, workload: Workload, folder: str, mode: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.free_at_start = self.free_bytes()
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        model = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation="sdpa")
        self.loss = Loss(model.to(self.device).train())
        self.parameters = list(model.parameters())
        if mode != UNCOMPILED:
            self.loss.compile(mode=mode)
        groups = [
            {"params": [each for each in self.parameters if each.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [each for each in self.parameters if each.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
        self.batch = {name: torch.from_numpy(array).to(self.device) for name, array in workload.batch(folder).items()}
        labels = self.batch.pop("mlm_labels").flatten()
        self.batch["positions"] = (labels != -100).nonzero().flatten()
        self.batch["masked_labels"] = labels[self.batch["positions"]]
        self.outcomes: list[torch.Tensor] = []

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(self.batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        # A copy: with CUDA graphs the next step writes where this one's loss is.
        self.outcomes.append(torch.stack([loss.detach().float(), norm.float()]))

    def finish(self) -> list[tuple[float, float]]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        found = [tuple(outcome.tolist()) for outcome in self.outcomes]
        self.outcomes.clear()
        return found

    def facts(self) -> dict[str, str]:
        return {"torch": torch.__version__, "transformers": transformers.__version__}

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else 0

    def held_bytes(self) -> int:
        return self.free_at_start - self.free_bytes()

    def rates(self) -> dict[str, float]:
        return {}


if __name__ == "__main__":
    serve(lambda: TorchSide(Workload.parsed(sys.argv[1]), *sys.argv[2:]))
