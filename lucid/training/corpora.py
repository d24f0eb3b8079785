"""The corpus of a run, checked against the model, and its samplers for training and evaluation."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lucid.backend import Array
from lucid.data import HELD_OUT, Corpus, Manifest, Sampler, SamplerSettings
from lucid.errors import ConfigError
from lucid.training.config import DataSettings, RunConfig
from lucid.training.evaluation import frequency_losses


@dataclass(frozen=True)
class Corpora:
    """The corpus of a run: samplers of its training and held-out samples, and each token's loss by its frequency.

    `held_out` is None if the corpus has no held-out documents; `token_losses` are those of `frequency_losses`.
    """

    identity: str
    tokenizer_hash: str
    train: Sampler
    held_out: Sampler | None
    token_losses: Array
    tokenizer_folder: Path


def open_corpora(config: RunConfig) -> Corpora:
    """Open the prepared corpus that `config` names. Raises `ConfigError` if it does not fit the model."""
    folder = config.data.path
    corpus = Corpus.open(folder)
    if config.model.vocab_size < corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer of {folder} has {corpus.vocab_size} "
            f"tokens: set model.vocab_size={corpus.vocab_size}, or more"
        )
    if config.model.pad_token_id != corpus.special_tokens.pad:
        raise ConfigError(
            f"model.pad_token_id is {config.model.pad_token_id}, but [PAD] is {corpus.special_tokens.pad} in the "
            f"tokenizer of {folder}: set model.pad_token_id={corpus.special_tokens.pad}"
        )
    held_out = None
    if HELD_OUT in Manifest.read(folder).splits:
        held_out = Sampler(Corpus.open(folder, HELD_OUT), evaluation_settings(config.data), config.train.seed)
    elif config.train.evaluate_every:
        raise ConfigError(
            f"train.evaluate_every is set, but {folder} has no held-out documents: see prepare --held-out"
        )
    return Corpora(
        identity=corpus.identity,
        tokenizer_hash=corpus.tokenizer_hash,
        train=Sampler(corpus, _sampler_settings(config.data), config.train.seed),
        held_out=held_out,
        token_losses=frequency_losses(corpus) if held_out is not None else np.zeros(0),
        tokenizer_folder=corpus.tokenizer_folder,
    )


def _sampler_settings(data: DataSettings) -> SamplerSettings:
    """Return the settings of the sampler, which have the same names in `data`."""
    return SamplerSettings(**{part.name: getattr(data, part.name) for part in fields(SamplerSettings)})


def evaluation_settings(data: DataSettings) -> SamplerSettings:
    """Return the settings of held-out samples: BERT's masking, whatever training uses, so that runs can be compared."""
    return SamplerSettings(sequence_length=data.sequence_length, nsp=data.nsp)
