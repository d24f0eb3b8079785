"""`lucid embed`: one vector for each text."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from lucid.cli.device import Device
from lucid.cli.input_options import Format, TextFields
from lucid.cli.model_folder import ModelFolder, agreed_model
from lucid.cli.model_options import BestOption, ModelArgument, PoolingChoice, PoolingOption, WatchdogOption
from lucid.cli.same_input import check_same
from lucid.cli.vector_files import Write, vector_file
from lucid.distributed import Communicator, agreed, all_or_none, device_for, run_on_first_rank, session, watched
from lucid.errors import CheckpointError, ConfigError
from lucid.models import BERTForPreTraining
from lucid.models.bert.sentence_transformers import SentenceSettings
from lucid.preparation.inputs.documents import read_documents
from lucid.training.config import WATCHDOG_SECONDS
from lucid.training.text_vectors import Text, TextBatch, TextTokenizer, batches_of, text_vectors

# Of each rank between two exchanges, and of all, which bounds the memory that long texts take.
_BATCHES_AT_ONCE, _MOST_CHARACTERS = 8, 1 << 24
# A vector that is shorter is divided by this, as sentence-transformers does.
_SHORTEST = 1e-12


def embed(
    model: ModelArgument,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Files or folders of text; - is the standard input (if it is slow: --watchdog-seconds 0).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write: .npy or .jsonl.", show_default=False)
    ],
    pooling: PoolingOption = None,
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Whether vectors are scaled to length 1. Default: as the model's folder says (modules.json), or not.",
            show_default=False,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Tokens to which a text is cut. Default: as the model's folder says (modules.json), or as many as the "
            "run trained on.",
            show_default=False,
        ),
    ] = None,
    text_field: TextFields = ["text"],  # noqa: B006  # typer copies it
    file_format: Format = None,
    best: BestOption = False,
    device: Annotated[Device, typer.Option(help="Device of the ranks.")] = Device.CPU,
    watchdog_seconds: WatchdogOption = WATCHDOG_SECONDS,
) -> None:
    """Write one vector for each text. Under mpiexec, ranks share the work, and the vectors stay the same.

    A text is a line of plain text, and otherwise what lucid prepare takes for a document: a record of .jsonl (field
    text), a row of .csv, .tsv, .parquet or .arrow (column text), a page of .html or .md. Vectors are in the order of
    the texts: float32 in .npy, with the texts in .jsonl. The output is whole or not there. For a folder of
    sentence-transformers they are those that it computes itself.

    Examples:

        lucid embed runs/small_cpu sentences.txt --output vectors.npy

        lucid embed models/small questions.jsonl -o vectors.jsonl --normalize

        mpiexec -n 8 lucid embed models/small - -o vectors.npy < texts.txt
    """
    with session() as communicator, watched(communicator, watchdog_seconds):
        folder = agreed_model(communicator, model, best)
        opened = all_or_none(communicator, lambda: _Opened.of(folder, pooling, normalize, max_length))
        opened.check_same(communicator)
        opened.model.to(device_for(communicator, device))
        documents = read_documents(inputs, text_field, kind=file_format, each_line=True)
        with ExitStack() as stack, communicator.status.phase("embedding"):
            file = vector_file(output, opened.model.config.hidden_size)
            write = all_or_none(communicator, lambda: stack.enter_context(file) if communicator.rank == 0 else _ignore)
            count, cut = _embed(opened, communicator, (document.text for document in documents), write)
        if communicator.rank == 0:
            print(opened.summary(output, count, cut))


@dataclass(frozen=True)
class _Opened:
    """A model, and how it makes a vector of a text."""

    folder: Path
    model: BERTForPreTraining
    settings: SentenceSettings
    tokenizer: TextTokenizer

    @classmethod
    def of(
        cls, folder: Path, pooling: PoolingChoice | None, normalize: bool | None, max_length: int | None
    ) -> "_Opened":
        found = ModelFolder.read(folder)
        settings = found.sentence_settings(pooling.value if pooling else None, normalize)
        longest = found.model.config.max_position_embeddings
        if max_length is not None and max_length > longest:
            raise ConfigError(f"--max-length is {max_length}, but {folder} takes {longest} at most")
        tokenizer = TextTokenizer(found.tokenizer(), max_length or settings.longest or longest)
        return cls(folder, found.model, settings, tokenizer)

    def check_same(self, communicator: Communicator) -> None:
        """Raise an agreed `CheckpointError` if a rank has another model than the first. All ranks call this."""
        # No vector depends on the pooler, which is random if the folder has none.
        weights = {name: array for name, array in self.model.bert.state_dict().items() if "pooler" not in name}
        texts = repr(self.settings), repr(self.model.config), self.tokenizer.to_str()
        check_same(communicator, str(self.folder), texts, [weights], CheckpointError)

    def vectors(self, batches: list[TextBatch], communicator: Communicator) -> np.ndarray:
        """Return the vectors of the texts, on all ranks. Raises `CheckpointError` if numbers are not finite."""
        vectors = text_vectors(self.model.bert, batches, communicator, self.settings.pooling)
        if not np.isfinite(vectors).all():
            raise agreed(CheckpointError(f"{self.folder} gives vectors that are not finite: take an older checkpoint"))
        if self.settings.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SHORTEST)
        return vectors

    def summary(self, output: Path, count: int, cut: int) -> str:
        """Return a sentence about `count` vectors, of texts of which so many were `cut`."""
        width, longest = self.model.config.hidden_size, self.tokenizer.longest
        what = {"mean": "means of the last hidden states", "first": "last hidden states of [CLS]"}
        scaled = ", of length 1" if self.settings.normalize else ""
        cut_off = f"; {cut:,} text{' was' if cut == 1 else 's were'} cut to {longest} tokens" if cut else ""
        return f"{output} holds {count:,} vectors of {width:,} numbers: {what[self.settings.pooling]}{scaled}{cut_off}"


def _embed(opened: _Opened, communicator: Communicator, texts: Iterator[str], write: Write) -> tuple[int, int]:
    """Embed the texts that the first rank reads, and `write` the vectors there. Return how many, and how many cut."""
    if opened.settings.lower_case:
        texts = (text.lower() for text in texts)
    batches = ([*batch.texts] for batch in batches_of(texts, opened.tokenizer))
    count, cut = 0, 0
    while block := _block(communicator, batches):
        parts = [TextBatch(texts, opened.tokenizer) for texts in block]
        vectors = opened.vectors(parts, communicator)
        own = [text for texts in block for text in texts]
        all_or_none(communicator, partial(write, own, vectors))
        count += len(vectors)
        cut += sum(part.cut for part in parts)
    return count, round(communicator.all_reduce_scalar(cut))


def _block(communicator: Communicator, batches: Iterator[list[Text]]) -> list[list[str]]:
    """Return on all ranks the next batches that the first rank reads: some for each rank, none at the end."""

    def read() -> str:
        block: list[list[Text]] = []
        characters = 0
        for batch in islice(batches, _BATCHES_AT_ONCE * communicator.size):
            block.append(batch)
            characters += sum(map(len, batch))
            if characters > _MOST_CHARACTERS:
                break
        return json.dumps(block)

    found: list[list[str]] = json.loads(run_on_first_rank(communicator, read))
    return found


def _ignore(texts: Sequence[str], vectors: np.ndarray) -> None:
    """Write nothing: the first rank does."""
