"""`lucid extend`: adds words of a text to the vocabulary of a model."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from tokenizers import Tokenizer

from lucid import random
from lucid.cli.input_options import Format, TextFields
from lucid.cli.model_folder import ModelFolder, check_new, chosen_model
from lucid.cli.model_options import BestOption, ModelArgument
from lucid.cli.progress import progress_bar
from lucid.data import HELD_OUT, TRAIN, Corpus, tokenizer_hash
from lucid.data.decoding import decoded_documents
from lucid.data.manifest import MANIFEST_NAME
from lucid.data.tokenizer import special_tokens
from lucid.distributed.communicators.announcement import check_started_once
from lucid.errors import ConfigError
from lucid.files import replacing
from lucid.launch.limits import available_cores
from lucid.preparation.extension import Coverage, NewWord, count_words, most_split, sample, with_words
from lucid.preparation.inputs.sources import Choice
from lucid.preparation.parts import TextSettings
from lucid.preparation.stages import Report
from lucid.preparation.text_sample import SAMPLE_BYTES, TextSample

# New words that are shown.
_SHOWN = 10
# Tokens of a prepared corpus that are read at most: about as much text as of other inputs.
_MOST_TOKENS = SAMPLE_BYTES // 4


def extend(
    model: ModelArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Text, as for lucid prepare; or a corpus that was prepared with the model's tokenizer.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the new model.", show_default=False)],
    tokens: Annotated[int, typer.Option(min=1, help="Words to add to the vocabulary.")] = 2000,
    at_least: Annotated[int, typer.Option(min=1, help="Words that occur less often are not added.")] = 5,
    text_field: TextFields = ["text"],  # noqa: B006 (typer reads it)
    kind: Format = None,
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="Each .txt is one document, with or without blank lines.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that read text. Default: one for each core.", show_default=False),
    ] = None,
    best: BestOption = False,
) -> None:
    """Extend a model's vocabulary by the words of a text that its tokenizer splits most.

    Each new word gets the mean of the rows that its pieces have in the embedding, and of their biases; a word that was
    unknown gets a random row. Train the new model on the text (initial_model), because this is only a start. 5% of the
    documents are held out, as by lucid prepare; they show how many tokens a word takes before and after.

    OUTPUT gets what lucid export writes. In the section model of a run, vocab_size must be the new number of tokens.

    Examples:

        lucid extend models/bert-base notes/ --output models/bert-notes

        lucid extend runs/small_cpu news.jsonl.gz --tokens 500 -o models/news
    """
    check_started_once("extend")
    source = chosen_model(model, best)
    check_new(output)
    random.manual_seed(0)  # the model depends on the arguments alone
    found = ModelFolder.read(source)
    tokenizer = found.tokenizer()
    with replacing(output.absolute()) as aside, progress_bar() as bar:
        aside.mkdir(parents=True)
        with TemporaryDirectory(dir=aside) as folder:
            settings = TextSettings(whole_files, language="en", strict=False)
            choice = Choice(text_field, kind=kind)
            text = _Text.of(inputs, tokenizer, choice, settings, Path(folder), processes or available_cores(), bar)
            bar("learning words", 0, 0)
            words = most_split(tokenizer, count_words(tokenizer, text.documents(TRAIN)), tokens, at_least)
            held_out = count_words(tokenizer, text.documents(HELD_OUT))
        bert = found.model.with_vocabulary(tokenizer.get_vocab_size()).with_tokens([word.pieces for word in words])
        extended = with_words(tokenizer, [word.text for word in words])
        remarks = found.write(aside, bert, extended)
    print(f"{output} has {bert.config.vocab_size:,} tokens: those of {source}, and {tokens:,} words of the text")
    if unknown := sum(not word.pieces for word in words):
        print(f"words that were unknown, whose rows are newly initialised: {unknown:,}")
    print(f"words that save most tokens: {', '.join(_in_pieces(tokenizer, word) for word in words[:_SHOWN])}")
    print(f"held-out text before: {Coverage.of(tokenizer, held_out)}")
    print(f"held-out text after:  {Coverage.of(extended, held_out)}")
    print(*text.remarks, *remarks, sep="\n", end="\n" * bool(text.remarks + remarks))


def _in_pieces(tokenizer: Tokenizer, word: NewWord) -> str:
    return f"{word.text} ({' '.join(tokenizer.id_to_token(piece) or '' for piece in word.pieces) or 'unknown'})"


@dataclass(frozen=True)
class _Text:
    """The text from which words are learnt: corpora with the tokenizer of the model, and a sample of other inputs."""

    tokenizer: Tokenizer
    corpora: list[Path]
    samples: TextSample | None

    @classmethod
    def of(
        cls,
        inputs: list[str],
        tokenizer: Tokenizer,
        choice: Choice,
        settings: TextSettings,
        folder: Path,
        processes: int,
        report: Report,
    ) -> "_Text":
        """Read `inputs`, and write a sample of them to `folder`. Raises a `LucidError` if one cannot be used."""
        corpora = [Path(entry) for entry in inputs if os.path.lexists(Path(entry) / MANIFEST_NAME)]
        others = [entry for entry in inputs if Path(entry) not in corpora]
        if not others and (choice != Choice(["text"]) or settings.whole_files):
            raise ConfigError(
                "--text-field, --format and --whole-files say how text is read, but each input is a prepared corpus: "
                "leave them out"
            )
        for corpus in corpora:
            if Corpus.open(corpus).tokenizer_hash != tokenizer_hash(tokenizer):
                raise ConfigError(
                    f"{corpus} holds the tokens of another tokenizer than the model's: "
                    "name the text that it was made of instead"
                )
        return cls(tokenizer, corpora, sample(others, choice, settings, folder, processes, report) if others else None)

    def documents(self, split: str) -> Iterator[str]:
        """Yield the texts of a split."""
        for corpus in self.corpora:
            yield from decoded_documents(Corpus.open(corpus, split), self.tokenizer, _MOST_TOKENS)
        if self.samples:
            yield from self.samples.texts(held_out=split == HELD_OUT)

    @property
    def remarks(self) -> list[str]:
        """A sentence about text that was left out, if any was, and about each corpus that lacks the text of words."""
        left_out = self.samples.census.left_out if self.samples else ""
        found = [f"some of the text could not be used, first {left_out}"] if left_out else []
        unknown = special_tokens(self.tokenizer).unknown
        for corpus in self.corpora:
            splits = (Corpus.open(corpus, split) for split in (TRAIN, HELD_OUT))
            if lost := sum(int(split.token_frequencies()[unknown]) for split in splits):
                found.append(
                    f"{corpus} has [UNK] in place of {lost:,} words, which are not counted above: "
                    "to add them, name the text that it was made of"
                )
        return found
