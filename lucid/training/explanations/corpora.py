"""Rules about the corpora: text that repeats itself, and tokenizers that do not fit."""

from collections.abc import Iterator

from lucid.training.explanations.curve import Curve
from lucid.training.explanations.facts import CorpusFacts, Facts
from lucid.training.explanations.finding import Finding

# Shares of a corpus, and tokens of a word, that no corpus of the documented kind with its own tokenizer has.
_REPEATED, _UNKNOWN, _TOKENS_PER_WORD = 0.4, 0.01, 2.4


def repeating(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find corpora that repeat themselves."""
    for corpus in facts.corpora:
        if corpus.repeated is not None and corpus.repeated > _REPEATED:
            yield Finding(
                f"repeats in {corpus.name}",
                f"{corpus.repeated:.0%} of the tokens of {corpus.name} are in sentences that came before: the model "
                "sees the same text more often than the epochs say",
                "Prepare it with --drop-duplicates, or --drop-repeated-lines 10",
            )


def unfit_tokenizers(curve: Curve, facts: Facts) -> Iterator[Finding]:
    """Find tokenizers that do not know the words of their corpus, or cut them into many pieces."""
    for corpus in facts.corpora:
        fit = _fit(corpus)
        if not fit:
            continue
        meaning, advice = (
            "the tokenizer is made for other text",
            "Prepare it without --tokenizer, to train one; or take a model of this language, or `lucid extend` its "
            "vocabulary",
        )
        if corpus.tokens_per_word is None:  # the tokenizer was trained on the corpus
            meaning, advice = (
                "the model learns nothing about the words behind them",
                "Prepare it again with --overwrite, and read what it says of them: a larger --alphabet or --vocab-size "
                "may be needed",
            )
        yield Finding(f"tokenizer of {corpus.name}", f"{fit}: {meaning}", advice)


def _fit(corpus: CorpusFacts) -> str:
    """Return how badly the tokenizer fits, "" if it fits well."""
    if corpus.unknown > _UNKNOWN:
        return f"{corpus.unknown:.1%} of the tokens of {corpus.name} are [UNK]"
    if corpus.tokens_per_word is not None and corpus.tokens_per_word > _TOKENS_PER_WORD:
        return f"{corpus.name} has {corpus.tokens_per_word:.2f} tokens a word"
    return ""
