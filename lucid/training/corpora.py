"""The corpora of a run, checked against the model, and their samples for training and evaluation."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from lucid.data import HELD_OUT, Corpus, Mixture, Sampler, SamplerSettings
from lucid.data.mixture import seeds_of, shares_of
from lucid.distributed import Communicator, all_or_none, broadcast_text
from lucid.errors import ConfigError, DataError
from lucid.training.config import DataSettings, RunConfig
from lucid.training.counts.losses import frequency_losses
from lucid.training.held_out import HeldOut

# Settings of `prepare` that decide which documents are held out.
_SPLITTING = "held_out", "drop_repeated_lines"


@dataclass(frozen=True)
class Corpora:
    """The corpora of a run: its training samples, and what it is evaluated on.

    A single corpus gives its `identity`; several give a hash of theirs and their shares. The `remark` names corpora
    that the evaluation leaves out. `other_splits` name options by which a document may be trained on in one corpus and
    held out in another. `held_out_samples` is a hash of what the held-out loss is measured on.
    """

    identity: str
    tokenizer_hash: str
    tokenizer_folder: Path
    train: Mixture
    held_out: tuple[HeldOut, ...]
    held_out_samples: str
    remark: str | None
    other_splits: tuple[str, ...]

    @property
    def index_bytes(self) -> int:
        """The memory for the places of all samples, for training and evaluation."""
        samplers = [*self.train.samplers, *(corpus.sampler for corpus in self.held_out)]
        return sum(sampler.index_bytes for sampler in samplers)


def open_corpora(config: RunConfig) -> Corpora:
    """Open the prepared corpora that `config` names. Raises a `LucidError` if they do not fit the model."""
    data, train = config.data, config.train
    mixture = open_mixture(config)
    corpora = [sampler.corpus for sampler in mixture.samplers]
    others = open_alike(train.evaluate_also, corpora[0])
    held_out, remark = open_held_out(data, [*corpora, *others], train.seed)
    if train.evaluate_every and not held_out:
        raise ConfigError(f"train.evaluate_every is set, but {why_unevaluated(corpora)}")
    if train.keeps_best and all(corpus.share is None for corpus in held_out):
        name = "keep_best" if train.keep_best else "patience"
        raise ConfigError(f"train.{name} needs the held-out loss of data.path, but {why_unevaluated(corpora)}")
    return Corpora(
        identity=identity_of(mixture),
        tokenizer_hash=corpora[0].tokenizer_hash,
        tokenizer_folder=corpora[0].tokenizer_folder,
        train=mixture,
        held_out=held_out,
        held_out_samples=_held_out_samples(config, held_out),
        remark=remark,
        other_splits=tuple(_other_splits([*corpora, *others])),
    )


def _held_out_samples(config: RunConfig, held_out: Sequence[HeldOut]) -> str:
    """Return a hash of the samples that the held-out loss of a run is measured on."""
    shares = [[corpus.sampler.corpus.identity, corpus.share] for corpus in held_out if corpus.share is not None]
    data, train = config.data, config.train
    settings = [data.sequence_length, data.nsp, train.evaluation_samples, train.seed]
    return hashlib.sha256(json.dumps([shares, settings]).encode()).hexdigest()


def open_mixture(config: RunConfig) -> Mixture:
    """Open the documents for training of the corpora that `config` names, alone.

    Raises a `LucidError` if they do not fit the model.
    """
    data, seed = config.data, config.train.seed
    corpora = open_alike(data.folders)
    first = corpora[0]
    if config.model.vocab_size < first.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer of {first.folder} has "
            f"{first.vocab_size} tokens: set model.vocab_size={first.vocab_size}, or more"
        )
    if config.model.pad_token_id != first.special_tokens.pad:
        raise ConfigError(
            f"model.pad_token_id is {config.model.pad_token_id}, but [PAD] is {first.special_tokens.pad} in the "
            f"tokenizer of {first.folder}: set model.pad_token_id={first.special_tokens.pad}"
        )
    settings, seeds = _sampler_settings(config), seeds_of(seed, len(corpora))
    samplers = [Sampler(corpus, settings, own_seed) for corpus, own_seed in zip(corpora, seeds, strict=True)]
    return Mixture(samplers, [corpus.weight for corpus in data.corpora], seed)


def check_same_corpora(corpora: Corpora, communicator: Communicator) -> None:
    """Raise `DataError` on all ranks if one reads other corpora than the first, such as older copies on its host.

    All ranks call this.
    """
    own = " ".join([corpora.identity, *(corpus.sampler.corpus.identity for corpus in corpora.held_out)])
    first = broadcast_text(communicator, own)

    def compare() -> None:
        if own != first:
            folders = ", ".join(str(sampler.corpus.folder) for sampler in corpora.train.samplers)
            raise DataError(
                f"rank {communicator.rank} on {os.uname().nodename} reads another corpus than the first rank, under "
                f"the same path ({folders}): copy the first rank's corpus to every host, or use a shared folder"
            )

    all_or_none(communicator, compare)


def open_alike(folders: Sequence[Path], first: Corpus | None = None) -> list[Corpus]:
    """Open the training splits of these corpora.

    Raises `DataError` unless all have the same tokenizer, and the `first` corpus of a run has it, too.
    """
    corpora = [Corpus.open(folder) for folder in folders]
    for other in corpora:
        first = first or other
        if other.tokenizer_hash != first.tokenizer_hash:
            raise DataError(
                f"{other.folder} was prepared with another tokenizer than {first.folder}: prepare it again with lucid "
                f"prepare --tokenizer {first.tokenizer_folder}"
            )
    return corpora


def open_held_out(data: DataSettings, corpora: Sequence[Corpus], seed: int) -> tuple[tuple[HeldOut, ...], str | None]:
    """Open the held-out documents of `corpora`, which are those of `data` and others after them.

    Also return a sentence about corpora of `data` that are left out, because they have too few; others raise
    `DataError` then. All draw their samples from `seed` itself, so that a corpus has the same ones in every mixture.
    """
    settings = evaluation_settings(data)
    names = corpus_names([corpus.folder for corpus in corpora])
    shares: list[float | None] = [float(share) for share in shares_of([corpus.weight for corpus in data.corpora])]
    shares += [None] * (len(corpora) - len(shares))
    making = json.dumps([asdict(settings), seed])
    held_out, left_out = [], []
    for name, share, corpus in zip(names, shares, corpora, strict=True):
        if _held_out_enough(corpus, data.nsp):
            sampler = Sampler(Corpus.open(corpus.folder, HELD_OUT), settings, seed)
            held_out.append(HeldOut(name, share, sampler, corpus, frequency_losses(corpus), making))
        elif share is None:
            raise DataError(f"train.evaluate_also: {why_unevaluated([corpus])}")
        else:
            left_out.append(corpus)
    return tuple(held_out), _remark(left_out, data) if left_out else None


def _held_out_enough(corpus: Corpus, nsp: bool) -> bool:
    return corpus.documents_in(HELD_OUT) >= (2 if nsp else 1)


def why_unevaluated(corpora: Sequence[Corpus]) -> str:
    """Say that these corpora have too few held-out documents for an evaluation, and what to do."""
    return f"{_too_few(corpora)}: prepare with a larger --held-out, or more text"


def _too_few(corpora: Sequence[Corpus]) -> str:
    reasons = {0: "has no held-out documents", 1: "has one held-out document, too few for pairs (data.nsp)"}
    return " and ".join(f"{corpus.folder} {reasons[corpus.documents_in(HELD_OUT)]}" for corpus in corpora)


def _remark(left_out: Sequence[Corpus], data: DataSettings) -> str | None:
    """Return a sentence about corpora that are not evaluated. None if all were prepared without held-out documents."""
    if len(left_out) < len(data.corpora):
        return f"{_too_few(left_out)}: the held-out loss leaves this part of the mixture out"
    if any(corpus.documents_in(HELD_OUT) for corpus in left_out):
        return f"{_too_few(left_out)}: there is no held-out loss"
    return None


def _other_splits(corpora: Sequence[Corpus]) -> Iterator[str]:
    first = corpora[0]
    for name in _SPLITTING:
        used = _used(first, name)
        if other := next((corpus for corpus in corpora if _used(corpus, name) != used), None):
            yield (
                f"{first.folder} was prepared {used}, {other.folder} {_used(other, name)}: a document of both may be "
                "trained on in one and held out in the other"
            )


def _used(corpus: Corpus, name: str) -> str:
    """Return for instance "with --held-out 0.05"."""
    option, value = f"--{name.replace('_', '-')}", corpus.made_from.get(name)
    return f"without {option}" if value is None else f"with {option} {value}"


def corpus_names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each of several different folders: the last part of its path.

    If one before it has that name, it is as many of the last parts as make a new one. So a folder that is added at the
    end changes no other name.
    """
    names: list[str] = []
    for folder in folders:
        parts = Path(os.path.abspath(folder)).parts
        found = (str(Path(*parts[start:])) for start in reversed(range(len(parts))))
        names.append(next(name for name in found if name not in names))
    return names


def identity_of(mixture: Mixture) -> str:
    """Return the identity of the only corpus of a mixture, or a hash of its corpora and their shares."""
    identities = [sampler.corpus.identity for sampler in mixture.samplers]
    if len(identities) == 1:
        return identities[0]
    mixed = [[identity, str(share)] for identity, share in zip(identities, mixture.shares, strict=True)]
    return hashlib.sha256(json.dumps(mixed).encode()).hexdigest()


def _sampler_settings(config: RunConfig) -> SamplerSettings:
    """Return the settings of the sampler, which have the same names in `data`, with the largest masking rate."""
    settings = {part.name: getattr(config.data, part.name) for part in fields(SamplerSettings)}
    return SamplerSettings(**settings | {"mlm_probability": config.masking_rate.largest})


def evaluation_settings(data: DataSettings) -> SamplerSettings:
    """Return the settings of held-out samples: BERT's masking, whatever training uses, so that runs can be compared."""
    return SamplerSettings(sequence_length=data.sequence_length, nsp=data.nsp)
