"""Evaluation on held-out documents: the same samples on any number of ranks, and means over all of their tokens.

The samples have BERT's masking, whatever training uses, so that runs can be compared.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from lucid.backend import Array
from lucid.data import Corpus, Sampler
from lucid.distributed import Communicator
from lucid.kernels.masking import IGNORE_INDEX
from lucid.models import BERTForPreTraining
from lucid.training.micro_batches import labelled_rows


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out samples; losses in nats. `frequency_loss`: MLM loss of predicting by token frequency."""

    samples: int
    masked_tokens: int
    mlm_loss: float
    mlm_accuracy: float
    nsp_loss: float
    nsp_accuracy: float
    frequency_loss: float

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.mlm_loss, 700.0))

    def as_dict(self) -> dict[str, float]:
        """Return all values by their names in the log."""
        return {f"held_out_{name}": value for name, value in {**asdict(self), "perplexity": self.perplexity}.items()}

    def sentence(self) -> str:
        """Return one line for users."""
        nsp = f", NSP accuracy {self.nsp_accuracy:.1%}" if not math.isnan(self.nsp_accuracy) else ""
        return (
            f"held out: MLM loss {self.mlm_loss:.3f} (by token frequency: {self.frequency_loss:.3f}), perplexity "
            f"{self.perplexity:.1f}, MLM accuracy {self.mlm_accuracy:.1%}{nsp} ({self.samples:,} samples)"
        )


def frequency_losses(corpus: Corpus) -> Array:
    """Return float64 [V]: the loss (nats) of each token if predicted by its frequency in `corpus`, plus one."""
    counts = corpus.token_frequencies() + 1
    return np.log(counts.sum()) - np.log(counts)


def evaluate(
    model: BERTForPreTraining,
    sampler: Sampler,
    communicator: Communicator,
    *,
    samples: int,
    batch_size: int,
    token_losses: Array,
) -> Evaluation:
    """Evaluate `model` on the first `samples` of the sampler's first epoch, or on all if there are fewer.

    `token_losses` are the `frequency_losses` of the training split. All ranks call this.
    """
    samples = min(samples, sampler.samples_per_epoch)
    first, stop = (rank * samples // communicator.size for rank in (communicator.rank, communicator.rank + 1))
    sums = np.zeros(7)
    with model.evaluating():
        for start in range(first, stop, batch_size):
            sums += _sums(model, sampler, range(start, min(start + batch_size, stop)), token_losses)
    communicator.all_reduce(sums).wait()
    mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs, by_frequency = (float(value) for value in sums)
    return Evaluation(
        samples=samples,
        masked_tokens=int(masked),
        mlm_loss=_ratio(mlm_loss, masked),
        mlm_accuracy=_ratio(mlm_correct, masked),
        nsp_loss=_ratio(nsp_loss, pairs),
        nsp_accuracy=_ratio(nsp_correct, pairs),
        frequency_loss=_ratio(by_frequency, masked),
    )


def _sums(model: BERTForPreTraining, sampler: Sampler, rows: range, token_losses: Array) -> Array:
    batch = sampler.batch(0, rows)
    mlm, nsp = model.losses(labelled_rows(batch).on(model.device))
    by_frequency = token_losses[batch.mlm_labels[batch.mlm_labels != IGNORE_INDEX]].sum()
    of_mlm, of_nsp = ((head.loss.item(), int(head.correct), head.count) for head in (mlm, nsp))
    return np.array([*of_mlm, *of_nsp, by_frequency], np.float64)


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
