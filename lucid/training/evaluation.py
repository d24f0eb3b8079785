"""Evaluation on held-out documents: the same samples on any number of ranks, and means over all of their tokens.

The samples have BERT's masking, whatever training uses, so that runs can be compared.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from lucid.backend import Array
from lucid.distributed import Communicator
from lucid.kernels.masking import IGNORE_INDEX
from lucid.models import BERTForPreTraining
from lucid.training.held_out import HeldOut
from lucid.training.micro_batches import labelled_rows
from lucid.training.probes import Probe, ProbeResult


@dataclass(frozen=True)
class Evaluation:
    """Means over held-out samples; losses in nats.

    `frequency_loss` and `bigram_loss` are the MLM losses of predicting by token frequency, and by `Bigrams`.
    """

    samples: int
    masked_tokens: int
    mlm_loss: float
    mlm_accuracy: float
    nsp_loss: float
    nsp_accuracy: float
    frequency_loss: float
    bigram_loss: float

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
            f"held out{of_corpus}: MLM loss {self.mlm_loss:.3f} (by token frequency: {self.frequency_loss:.3f}, "
            f"by bigrams: {self.bigram_loss:.3f}), perplexity {self.perplexity:.1f}, "
            f"MLM accuracy {self.mlm_accuracy:.1%}{nsp} ({self.samples:,} samples)"
        )


@dataclass(frozen=True)
class Evaluations:
    """The evaluation of all training corpora together, None if none has held-out documents; and of single corpora.

    A single training corpus is not among the latter. `probes` are the results of linear probes, if there are any.
    """

    together: Evaluation | None
    by_corpus: dict[str, Evaluation]
    probes: Sequence[ProbeResult] = ()

    @property
    def loss(self) -> float:
        """The loss that training lowers, MLM + NSP, of all training corpora together. NaN if there is none."""
        if self.together is None:
            return math.nan
        nsp = self.together.nsp_loss
        return self.together.mlm_loss + (0.0 if math.isnan(nsp) else nsp)

    def _named(self) -> Iterable[tuple[Evaluation, str | None]]:
        if self.together is not None:
            yield self.together, None
        yield from ((evaluation, name) for name, evaluation in self.by_corpus.items())

    def as_dict(self) -> dict[str, float]:
        """Return all values by their names in the log."""
        held_out = {key: value for evaluation, name in self._named() for key, value in evaluation.as_dict(name).items()}
        return held_out | {key: value for probe in self.probes for key, value in probe.as_dict().items()}

    def sentences(self) -> list[str]:
        """Return one line for users about each evaluation and each probe."""
        held_out = [evaluation.sentence(name) for evaluation, name in self._named()]
        return held_out + [probe.sentence() for probe in self.probes]


def evaluate(
    model: BERTForPreTraining,
    held_out: Sequence[HeldOut],
    communicator: Communicator,
    *,
    samples: int,
    batch_size: int,
    bigram_loss: Callable[[HeldOut, int], float],
    probes: Sequence[Probe] = (),
) -> Evaluations:
    """Evaluate `model` on the first `samples` of each corpus's first epoch, or on all if there are fewer; and `probes`.

    Together, the sums over a corpus's samples count by its share in training, however many samples it has; so the
    losses and accuracies are those of the mixture. Ranks share the batches, which are the same for any number of ranks;
    so are the bits of the losses. On the first rank, `bigram_loss` gives the loss of bigrams on so many samples, summed
    over their masked tokens. All ranks call this.
    """
    found = [_evaluated(model, corpus, communicator, samples, batch_size, bigram_loss) for corpus in held_out]
    trained = [sums for sums in found if sums.corpus.share is not None]
    alone = [sums for sums in found if sums.corpus.share != 1]
    by_corpus = {sums.corpus.name: _evaluation(sums.samples, sums.values) for sums in alone}
    return Evaluations(_together(trained), by_corpus, [probe.result(model, communicator) for probe in probes])


# Of the sums below: the number of masked tokens, and how many sums there are.
_MASKED, _SUMS = 2, 8


@dataclass(frozen=True)
class _Sums:
    """Sums over samples of a corpus, float64 [_SUMS].

    Loss, correct predictions and labels of MLM, then of NSP; MLM losses by token frequency and by bigrams.
    """

    corpus: HeldOut
    samples: int
    values: Array


def _evaluated(
    model: BERTForPreTraining,
    corpus: HeldOut,
    communicator: Communicator,
    samples: int,
    batch_size: int,
    bigram_loss: Callable[[HeldOut, int], float],
) -> _Sums:
    samples = min(samples, corpus.sampler.samples_per_epoch)
    starts = range(0, samples, batch_size)
    first, stop = (rank * len(starts) // communicator.size for rank in (communicator.rank, communicator.rank + 1))
    values = np.zeros(_SUMS)
    with model.evaluating():
        for start in starts[first:stop]:
            values[:-1] += _sums(model, corpus, range(start, min(start + batch_size, samples)))
    if communicator.rank == 0:
        values[-1] = bigram_loss(corpus, samples)
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
    mlm_loss, mlm_correct, masked, nsp_loss, nsp_correct, pairs, by_frequency, by_bigrams = sums.tolist()
    return Evaluation(
        samples=samples,
        masked_tokens=int(masked),
        mlm_loss=_ratio(mlm_loss, masked),
        mlm_accuracy=_ratio(mlm_correct, masked),
        nsp_loss=_ratio(nsp_loss, pairs),
        nsp_accuracy=_ratio(nsp_correct, pairs),
        frequency_loss=_ratio(by_frequency, masked),
        bigram_loss=_ratio(by_bigrams, masked),
    )


def _sums(model: BERTForPreTraining, held_out: HeldOut, rows: range) -> Array:
    batch = held_out.sampler.batch(0, rows)
    mlm, nsp = model.losses(labelled_rows(batch).on(model.device))
    by_frequency = held_out.token_losses[batch.mlm_labels[batch.mlm_labels != IGNORE_INDEX]].sum()
    of_mlm, of_nsp = ((head.loss.item(), int(head.correct), head.count) for head in (mlm, nsp))
    return np.array([*of_mlm, *of_nsp, by_frequency], np.float64)


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan
