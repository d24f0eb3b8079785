"""Turns text into a corpus that training reads: documents -> sentences -> tokens -> parts -> shards.

The work is done in stages, each of many tasks that know nothing of each other: on the processes and ranks there are, in
any order, with the same result. What a task has made is a whole file, and is not made again when the work is resumed.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lucid.backend import return_freed_memory
from lucid.data.manifest import (
    HELD_OUT,
    MANIFEST_NAME,
    SHARD_PARTS,
    TOKENIZER_FOLDER,
    TRAIN,
    Manifest,
    frequencies_file,
)
from lucid.data.tokenizer import TOKENIZER_FILES, load_tokenizer, save_tokenizer, tokenizer_hash
from lucid.errors import DataError
from lucid.files import parse_dataclass, written_aside
from lucid.preparation.assembly import ShardMaker, finish
from lucid.preparation.documents import UNREADABLE
from lucid.preparation.lock import alone_in
from lucid.preparation.parts import PartMaker, Portion, TextSettings
from lucid.preparation.plan import UNFINISHED, Plan, conditions, make_plan
from lucid.preparation.selection import Selection, ShardPlan, select
from lucid.preparation.sources import Source, find_sources
from lucid.preparation.tokenizer_training import check_vocab_size
from lucid.preparation.vocabulary import SAMPLE_BYTES, SampleMaker, sample_path, train_on_samples
from lucid.preparation.workers import Maker, run_tasks

_PLAN, _SELECTION = "plan.json", "selection.json"
# Bytes of text that are encoded into one part: what is lost at most, for each process, when the work is cut short.
PIECE_BYTES = 1 << 23
# Bytes that remembered words take, in one process at most, and in all of a host. A hundred thousand words, of 16 MiB,
# make nearly all of a text in one language.
_WORD_BYTES, _WORD_BYTES_OF_HOST = 1 << 26, 1 << 27
# 256 MiB of 16-bit tokens a shard.
TOKENS_PER_SHARD = 1 << 27

# Told of the stage, and how many bytes of how many are done in it (of 0, if that is not known).
Report = Callable[[str, int, int], None]
Task = TypeVar("Task", Portion, ShardPlan, contravariant=True)


def _say_nothing(stage: str, done: int, total: int) -> None:
    pass


class Ranks(Protocol):
    """The processes that were started to prepare a corpus together, in one file system; this is number `rank`.

    They are on `node_count` hosts.
    """

    rank: int
    size: int
    node_count: int

    def barrier(self) -> None:
        """Block until all are here."""


class FileMaker(Maker[Task], Protocol[Task]):
    """Called with a task, it makes the file `path_of(task)`, whole or not at all."""

    def path_of(self, task: Task) -> Path:
        """Return where the file is."""


class _Alone:
    rank, size, node_count = 0, 1, 1

    def barrier(self) -> None:
        """Return at once."""


def prepare(
    inputs: Sequence[str | Path],
    output: Path,
    *,
    vocab_size: int = 30522,
    tokenizer: Path | None = None,
    held_out: float = 0.05,
    text_field: str = "text",
    whole_files: bool = False,
    language: str = "en",
    drop_duplicates: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    ranks: Ranks | None = None,
    report: Report = _say_nothing,
) -> Manifest:
    """Prepare the corpus `inputs` (see `read_documents`) in the folder `output`, and return its manifest.

    A WordPiece tokenizer of `vocab_size` tokens is trained on it, or the one in the folder `tokenizer` is used. A share
    `held_out` of the documents, by a hash of their text, goes into the split `held_out`, the others into `train`; with
    `drop_duplicates` a text that stands there already is left out. Sentences end as in `language` (see
    `split_sentences`). What cannot be used is left out, counted and listed, or with `strict` a `DataError`.

    Each rank works in `workers` processes; the corpus does not depend on how many there are of either. A preparation
    that was cut short goes on where it was, if it is called with the same arguments. If `output` already holds the
    corpus that they make, it is left as it is; if it holds another, `overwrite` has to be set. `report` is told of the
    progress, at last of the outcome. Raises `DataError` on bad input, on what cannot be written, and if another
    preparation is at work in `output`.
    """
    ranks = ranks or _Alone()
    output = Path(output)
    settings = TextSettings(text_field, whole_files, language, strict)
    with ExitStack() as stack:
        if ranks.rank == 0:
            given = None if tokenizer is None else load_tokenizer(Path(tokenizer))
            made_from = {
                "held_out": held_out,
                "vocab_size": vocab_size if given is None else None,
                "tokenizer": None if given is None else tokenizer_hash(given),
                "text_field": text_field,
                "whole_files": whole_files,
                "language": language,
                "drop_duplicates": drop_duplicates,
            }
            _check_arguments(inputs, output, held_out)
            if given is None:
                check_vocab_size(vocab_size)
            sources = find_sources(inputs)
            stack.enter_context(alone_in(output))
            if _begin(sources, output, settings, made_from, overwrite, report) and given is not None:
                save_tokenizer(given, output / TOKENIZER_FOLDER)
        ranks.barrier()
        plan = Plan.read(output / UNFINISHED / _PLAN)
        if plan is None:
            outcome = f"{output} holds this corpus already: nothing was done"
        else:
            _Preparation(output, plan, settings, workers, ranks, report).run()
            outcome = f"{output} holds the corpus"
    report(outcome, 0, 0)
    return Manifest.read(output)


def _check_arguments(inputs: Sequence[str | Path], output: Path, held_out: float) -> None:
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}: it is a share of the documents, at least 0 and below 1")
    for entry in inputs:
        if Path(entry).is_dir() and output.resolve().is_relative_to(Path(entry).resolve()):
            raise DataError(f"output {output} lies within the input folder {entry}: choose a place outside")
    if output.exists() and not output.is_dir():
        raise DataError(f"output {output} is a file: choose a folder")


def _begin(
    sources: list[Source],
    output: Path,
    settings: TextSettings,
    made_from: dict[str, Any],
    overwrite: bool,
    report: Report,
) -> bool:
    """Write the plan of the work, keeping what is done of the same plan; return whether there is anything to do."""
    unfinished = output / UNFINISHED
    before = Plan.read(unfinished / _PLAN)
    # What could not be read may be readable now, though neither its size nor its time has changed.
    if (
        before
        and before.sources == tuple(sources)
        and before.conditions == conditions(settings, PIECE_BYTES)
        and not before.dropped.counts[UNREADABLE]
    ):
        plan = replace(before, made_from={"inputs": before.made_from["inputs"], **made_from})
    else:
        progress = _Progress("reading", sum(source.size for source in sources), report)
        plan = make_plan(sources, settings, made_from, PIECE_BYTES, progress.done)
    if not overwrite and _exists(output, plan.made_from):
        shutil.rmtree(unfinished, ignore_errors=True)
        return False
    same = before and (before.made_from, before.conditions) == (plan.made_from, plan.conditions)
    if not same or (output / MANIFEST_NAME).exists():
        _clear(output)
    unfinished.mkdir(parents=True, exist_ok=True)
    plan.write(unfinished / _PLAN)
    return True


def _exists(output: Path, made_from: Any) -> bool:
    """Return whether `output` holds the corpus. Raises `DataError` if it holds one made from something else."""
    if not (output / MANIFEST_NAME).exists():
        return False
    manifest = Manifest.read(output)
    differing = [name.replace("_", " ") for name, value in made_from.items() if manifest.made_from.get(name) != value]
    if differing:
        raise DataError(
            f"{output} holds a corpus made with other {', '.join(differing)}: "
            "choose another folder, or pass --overwrite"
        )
    manifest.check_files(output, checksums=True)
    return True


def _clear(output: Path) -> None:
    """Remove what an earlier preparation left: the manifest first, so that the rest is no corpus any more."""
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(output / UNFINISHED, ignore_errors=True)
    for name in TOKENIZER_FILES:
        (output / TOKENIZER_FOLDER / name).unlink(missing_ok=True)
    for split in (TRAIN, HELD_OUT):
        (output / frequencies_file(split)).unlink(missing_ok=True)
        for part in SHARD_PARTS:
            for path in output.glob(f"{split}-[0-9]*.{part}.npy*"):
                path.unlink()


class _Progress:
    """Counts the bytes that are done in a stage."""

    def __init__(self, stage: str, total: int, report: Report) -> None:
        self._stage, self._done, self._total, self._report = stage, 0, total, report
        self.done(0)

    def done(self, count: int) -> None:
        """Report `count` bytes more."""
        self._done += count
        self._report(self._stage, self._done, self._total)


@dataclass(frozen=True)
class _Preparation:
    """The stages, which all ranks go through together."""

    output: Path
    plan: Plan
    settings: TextSettings
    workers: int
    ranks: Ranks
    report: Report

    def run(self) -> None:
        """Go through all stages."""
        if self.plan.made_from["tokenizer"] is None:
            self._train_tokenizer()
        tokenizer = self.output / TOKENIZER_FOLDER
        maker = PartMaker(self._unfinished, tokenizer, self.settings, self._word_bytes)
        self._share_out("encoding", maker, self.plan.portions)
        self._first_rank_makes(self._unfinished / _SELECTION, self._select)
        selection = parse_dataclass(Selection, (self._unfinished / _SELECTION).read_bytes())
        vocab_size = load_tokenizer(tokenizer).get_vocab_size()
        self._share_out("writing shards", ShardMaker(self.output, selection, vocab_size), selection.shards)
        self._first_rank_makes(self.output / MANIFEST_NAME, lambda: finish(self.output, self.plan, selection))

    @property
    def _unfinished(self) -> Path:
        return self.output / UNFINISHED

    @property
    def _word_bytes(self) -> int:
        """Bytes for the remembered words of each process."""
        ranks_of_host = -(-self.ranks.size // self.ranks.node_count)
        return min(_WORD_BYTES, _WORD_BYTES_OF_HOST // (self.workers * ranks_of_host))

    def _share_out(self, stage: str, maker: FileMaker[Task], tasks: Sequence[Task]) -> None:
        """Have the ranks do those tasks whose files are not there yet."""
        share = tasks[self.ranks.rank :: self.ranks.size]
        mine = [task for task in share if not maker.path_of(task).exists()]
        progress = _Progress(stage, sum(task.size for task in mine), self.report)
        # What was done before took more than this process needs beside its workers: training a tokenizer most of all.
        return_freed_memory()
        for task in run_tasks(maker, mine, self.workers):
            progress.done(task.size)
        self.ranks.barrier()

    def _first_rank_makes(self, path: Path, action: Callable[[], None]) -> None:
        """Have the first rank make what is not there yet, while the others wait."""
        if self.ranks.rank == 0 and not path.exists():
            action()
        self.ranks.barrier()

    def _train_tokenizer(self) -> None:
        folder, portions, made_from = self.output / TOKENIZER_FOLDER, self.plan.portions, self.plan.made_from
        trained = folder / TOKENIZER_FILES[-1]
        if not trained.exists():
            share = min(1.0, SAMPLE_BYTES / max(sum(portion.size for portion in portions), 1))
            self._share_out("sampling", SampleMaker(self._unfinished, self.settings, share), portions)

        def train() -> None:
            self.report("training the tokenizer", 0, 0)
            paths = [sample_path(self._unfinished, portion) for portion in portions]
            held_out, vocab_size, left_out = made_from["held_out"], made_from["vocab_size"], self.plan.dropped.first
            save_tokenizer(train_on_samples(paths, held_out, vocab_size, left_out), folder)

        self._first_rank_makes(trained, train)

    def _select(self) -> None:
        made_from = self.plan.made_from
        selection = select(
            self._unfinished,
            len(self.plan.portions),
            made_from["held_out"],
            made_from["drop_duplicates"],
            TOKENS_PER_SHARD,
            self.plan.dropped.first,
        )
        with written_aside(self._unfinished / _SELECTION, DataError) as file:
            file.write(json.dumps(asdict(selection)).encode())
