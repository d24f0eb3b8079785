"""Evaluation on held-out documents: the same samples on any number of ranks, and means over all of their tokens.

The samples have BERT's masking, whatever training uses, so that runs can be compared.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

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

    def as_dict(self, corpus: str | None = None) -> dict[str, float]:
        """Return all values by their names in the log: `held_out_mlm_loss`, or `held_out_mlm_loss/<corpus>`."""
        of_corpus = "" if corpus is None else f"/{corpus}"
        values = {**asdict(self), "perplexity": self.perplexity}
        return {f"held_out_{name}{of_corpus}": value for name, value in values.items()}

    def sentence(self, corpus: str | None = None) -> str:
        """Return one line for users."""
        nsp = f", NSP accuracy {self.nsp_accuracy:.1%}" if not math.isnan(self.nsp_accuracy) else ""
        of_corpus = "" if corpus is None else f" ({corpus})"
        return (
            f"held out{of_corpus}: MLM loss {self.mlm_loss:.3f} (by token frequency: {self.frequency_loss:.3f}), "
            f"perplexity {self.perplexity:.1f}, MLM accuracy {self.mlm_accuracy:.1%}{nsp} ({self.samples:,} samples)"
        )


@dataclass(frozen=True)
class HeldOut:
    """The held-out samples of a corpus. `share` is its share in training, None if it is evaluated only.

    `token_losses` are the `frequency_losses` of its training split.
    """

    name: str
    share: float | None
    sampler: Sampler
    token_losses: Array


@dataclass(frozen=True)
class Evaluations:
    """The evaluation of all training corpora together, None if none has held-out documents; and of single corpora.

    A single training corpus is not among the latter.
    """

    together: Evaluation | None
    by_corpus: dict[str, Evaluation]

    def _named(self) -> Iterable[tuple[Evaluation, str | None]]:
        if self.together is not None:
            yield self.together, None
        yield from ((evaluation, name) for name, evaluation in self.by_corpus.items())

    def as_dict(self) -> dict[str, float]:
        """Return all values by their names in the log."""
        return {key: value for evaluation, name in self._named() for key, value in evaluation.as_dict(name).items()}

    def sentences(self) -> list[str]:
        """Return one line for users about each evaluation."""
        return [evaluation.sentence(name) for evaluation, name in self._named()]


def frequency_losses(corpus: Corpus) -> Array:
    """Return float64 [V]: the loss (nats) of each token if predicted by its frequency in `corpus`, plus one."""
    counts = corpus.token_frequencies() + 1
    return np.log(counts.sum()) - np.log(counts)


def evaluate(
    model: BERTForPreTraining,
    held_out: Sequence[HeldOut],
    communicator: Communicator,
    *,
    samples: int,
    batch_size: int,
) -> Evaluations:
    """Evaluate `model` on the first `samples` of each corpus's first epoch, or on all if there are fewer.

    Together, the sums over a corpus's samples count by its share in training, however many samples it has; so the
    losses and accuracies are those of the mixture. All ranks call this.
    """
    found = [_evaluated(model, corpus, communicator, samples, batch_size) for corpus in held_out]
    trained = [sums for sums in found if sums.corpus.share is not None]
    alone = [sums for sums in found if sums.corpus.share != 1]
    return Evaluations(_together(trained), {sums.corpus.name: _evaluation(sums.samples, sums.values) for sums in alone})


# Of the sums below: the number of masked tokens, and how many sums there are.
_MASKED, _SUMS = 2, 7


@dataclass(frozen=True)
class _Sums:
    """Sums over samples of a corpus, float64 [_SUMS].

    Loss, correct predictions and labels of MLM, then of NSP; MLM loss by token frequency.
    """

    corpus: HeldOut
    samples: int
    values: Array


def _evaluated(
    model: BERTForPreTraining, corpus: HeldOut, communicator: Communicator, samples: int, batch_size: int
) -> _Sums:
    samples = min(samples, corpus.sampler.samples_per_epoch)
    first, stop = (rank * samples // communicator.size for rank in (communicator.rank, communicator.rank + 1))
    values = np.zeros(_SUMS)
    with model.evaluating():
        for start in range(first, stop, batch_size):
            values += _sums(model, corpus, range(start, min(start + batch_size, stop)))
    communicator.all_reduce(values).wait()
    return _Sums(corpus, samples, values)


def _together(sums: Sequence[_Sums]) -> Evaluation | None:
    """Return the evaluation of all training corpora, None if there are none. That of a single one is its own."""
    if len(sums) < 2:
        return next((_evaluation(one.samples, one.values) for one in sums), None)
    weighted = np.sum([(one.corpus.share or 0) / one.samples * one.values for one in sums], axis=0)
    together = _evaluation(sum(one.samples for one in sums), weighted)
    return replace(together, masked_tokens=int(sum(one.values[_MASKED] for one in sums)))


def _evaluation(samples: int, sums: Array) -> Evaluation:
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


def _sums(model: BERTForPreTraining, held_out: HeldOut, rows: range) -> Array:
    batch = held_out.sampler.batch(0, rows)
    mlm, nsp = model.losses(labelled_rows(batch).on(model.device))
    by_frequency = held_out.token_losses[batch.mlm_labels[batch.mlm_labels != IGNORE_INDEX]].sum()
    of_mlm, of_nsp = ((head.loss.item(), int(head.correct), head.count) for head in (mlm, nsp))
    return np.array([*of_mlm, *of_nsp, by_frequency], np.float64)


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
