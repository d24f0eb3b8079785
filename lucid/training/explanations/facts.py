"""What the settings and the corpora of a run say, by which its curve is judged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lucid.data import Mixture
from lucid.training.config import RunConfig
from lucid.training.corpora import corpus_names
from lucid.training.counts.kept import KeptCounts
from lucid.training.counts.repeats import repeated_share
from lucid.training.counts.words import tokens_per_word


@dataclass(frozen=True)
class CorpusFacts:
    """What is known of a corpus. `unknown` is the share of [UNK] in its tokens.

    `tokens_per_word` is None if its tokenizer was trained on it, and NaN if the tokenizer cannot be read. `repeated` is
    the share of its tokens in sentences that came before, None if not known.
    """

    name: str
    unknown: float
    tokens_per_word: float | None
    repeated: float | None


@dataclass(frozen=True)
class Facts:
    """What the settings and corpora of a run say; None, False or empty where they are not at hand.

    `steps` is where the run is expected to end, and `masking_rises` whether later steps predict a larger share of the
    tokens, which is harder.
    """

    steps: int | None = None
    warmup_steps: int | None = None
    vocab_size: int | None = None
    is_new: bool = True
    corpora: tuple[CorpusFacts, ...] = ()
    masking_rises: bool = False

    @classmethod
    def of(cls, config: RunConfig, corpora: Sequence[CorpusFacts] = ()) -> "Facts":
        """Return the facts of a run with these settings; it is new if it starts from random weights."""
        is_new = not (config.initial_model or config.initial_checkpoint or config.branch_from)
        return cls(
            steps=config.train.steps,
            warmup_steps=config.optimizer.warmup_steps,
            vocab_size=config.model.vocab_size,
            is_new=is_new,
            corpora=tuple(corpora),
            masking_rises=config.masking_rate.last > config.masking_rate.first,
        )


def facts_of(config: RunConfig, mixture: Mixture, counts: KeptCounts) -> Facts:
    """Return the facts of a run with these settings and corpora; `counts` keeps what is counted in them."""
    return Facts.of(config, list(_corpus_facts(config, mixture, counts)))


def _corpus_facts(config: RunConfig, mixture: Mixture, counts: KeptCounts) -> Iterator[CorpusFacts]:
    for name, sampler in zip(corpus_names(config.data.folders), mixture.samplers, strict=True):
        corpus = sampler.corpus
        per_word = tokens_per_word(corpus, counts) if corpus.made_from.get("tokenizer") else None
        unknown = corpus.contents.unknown / corpus.token_count
        yield CorpusFacts(name, unknown, per_word, repeated_share(corpus, counts))
