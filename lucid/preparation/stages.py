"""Turns text into a corpus that training reads: documents -> sentences -> tokens -> parts -> shards.

The work is planned first, then done in stages. Each stage consists of many independent tasks, which processes do in any
order with the same result. A task makes a file that is whole or not there, so a second run makes only the missing ones.
A run with other inputs, settings or rules removes them, and starts from nothing.
"""

import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer

from lucid.backend import return_freed_memory
from lucid.data.manifest import (
    DROPPED_FILE,
    FORMAT_VERSION,
    HELD_OUT,
    MANIFEST_NAME,
    ORIGINS,
    SHARD_PARTS,
    TOKENIZER_FOLDER,
    TRAIN,
    Manifest,
    frequencies_file,
    shard_file,
)
from lucid.data.tokenizer import TOKENIZER_FILES, load_tokenizer, save_tokenizer, special_tokens, tokenizer_hash
from lucid.errors import DataError
from lucid.files import read_bytes, written_aside
from lucid.json_values import parse_json
from lucid.preparation.coverage import contradictions
from lucid.preparation.inputs.documents import scan
from lucid.preparation.inputs.kinds import PYTHON_DOCS
from lucid.preparation.inputs.omissions import OTHER_KIND, Dropped
from lucid.preparation.inputs.pieces import Piece, pieces_of
from lucid.preparation.inputs.sources import Choice, Source, find_sources
from lucid.preparation.inputs.standard_input import SPOOLED_FILE, spooled
from lucid.preparation.languages import language_code
from lucid.preparation.lock import alone_in
from lucid.preparation.parts import PartWriter, Portion, TextSettings, load_dropped, part_path
from lucid.preparation.processes import Task, run_tasks
from lucid.preparation.repeated_lines import find_repeated_lines
from lucid.preparation.selection import HELD_OUT_FRACTION, select
from lucid.preparation.shards import write_manifest, write_shard
from lucid.preparation.text_sample import SAMPLE_BYTES, TextSample, sampling
from lucid.preparation.vocabulary import VocabularySettings, train_tokenizer

# Number of the rules by which text is split and encoded: one more with each change of their results. Work that another
# version of lucid began under other rules, or with other versions of the libraries that apply them, begins anew.
_RULES = 8
_LIBRARIES = "sentencex", "tokenizers", "markdown-it-py"
# Within the folder of the corpus: where the work lies until it is finished, and the conditions that it is for.
_UNFINISHED, _CONDITIONS = "unfinished", "conditions.json"
# There too: how the trained tokenizer normalises, and why.
_NORMALISATION = "normalisation.json"
# What `written_aside` adds to the name of a file that is not finished.
_PARTIAL = ".*.partial"
# Bytes of text that are encoded into one part: each process loses at most one part when the work is cut short.
PIECE_BYTES = 1 << 23
# 256 MiB of 16-bit tokens a shard.
TOKENS_PER_SHARD = 1 << 27
# Bytes of remembered words, in one process at most, and in all together. A hundred thousand words, of 16 MiB, make up
# nearly all of a text in one language.
_WORD_BYTES, _WORD_BYTES_OF_HOST = 1 << 26, 1 << 27
# Files read at once: reading and hashing leave Python to other threads.
_READERS = 4

# Receives the stage, and how many bytes of how many are done in it; 0 of 0 if that is not known.
Report = Callable[[str, int, int], None]
Input = TypeVar("Input")


def prepare(
    inputs: Sequence[str | Path],
    output: Path,
    *,
    vocab_size: int = 30522,
    cased: bool | None = None,
    keep_accents: bool | None = None,
    alphabet: int | None = None,
    sample_bytes: int = SAMPLE_BYTES,
    tokenizer: Path | None = None,
    held_out: float = HELD_OUT_FRACTION,
    text_field: str | Sequence[str] = "text",
    ids_field: str | None = None,
    kind: str | None = None,
    whole_files: bool = False,
    language: str = "en",
    drop_duplicates: bool = False,
    drop_repeated_lines: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    processes: int = 1,
    report: Report = lambda stage, done, total: None,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Manifest:
    """Prepare the corpus `inputs` (see `read_documents`) in the folder `output`, and return its manifest.

    A WordPiece tokenizer of `vocab_size` tokens is trained on `sample_bytes` of it. The text decides whether it is
    `cased`, whether it may `keep_accents`, and how many characters its `alphabet` has, unless they are given. No
    tokenizer is trained if the folder `tokenizer` holds one to use. The fraction `held_out` of the documents, chosen by
    a hash of their text, goes into the split `held_out`, the rest into `train`. `text_field`, `ids_field` and `kind`
    are those of a `Choice`. Lines that stand in more than `drop_repeated_lines` documents are left out, and after that,
    with `drop_duplicates`, documents whose text occurs before them. Sentences end as in `language` (see
    `language_code`). Text that cannot be used is left out, counted and listed, or with `strict` a `DataError`.

    The corpus does not depend on the number of `processes`. Called again with the same arguments, a preparation that
    was cut short goes on where it was. A folder that holds the same corpus already is left as it is; one that holds
    another is refused without `overwrite`. `report` receives the progress, and finally the outcome; `warn` receives a
    sentence if the given tokenizer contradicts itself. Raises `DataError` on bad input, if a file cannot be written,
    and if another preparation is at work in `output`.
    """
    output, language = Path(output), language_code(language)
    choice, settings = Choice(text_field, ids_field, kind), TextSettings(whole_files, language, strict)
    vocabulary = VocabularySettings(vocab_size, cased, keep_accents, alphabet, sample_bytes)
    given = None if tokenizer is None else load_tokenizer(Path(tokenizer))
    for contradiction in contradictions(given) if given else ():
        warn(f"the tokenizer in {tokenizer} contradicts itself: {contradiction}")
    _check_arguments(inputs, output, held_out, drop_repeated_lines)
    vocabulary.check(is_used=given is None)
    if ids_field is not None and (given is None or drop_repeated_lines is not None):
        what = "have no lines: leave out --drop-repeated-lines" if given else "need their vocabulary: pass --tokenizer"
        raise DataError(f"token ids (--ids-field) {what}")
    sources, others = find_sources(inputs, choice)
    made_from = {
        "held_out": held_out,
        **(vocabulary.described() if given is None else dict.fromkeys(vocabulary.described())),
        "tokenizer": None if given is None else tokenizer_hash(given),
        "text_field": choice.fields_of(sources),
        "ids_field": ids_field,
        "format": kind,
        "whole_files": whole_files,
        "language": language,
        "drop_duplicates": drop_duplicates,
        "drop_repeated_lines": drop_repeated_lines,
    }
    with alone_in(output), spooled(sources, output / _UNFINISHED, choice) as readable:
        plan = make_plan(readable, others, settings, made_from, report)
        if not overwrite and (found := _corpus_in(output, plan.made_from)):
            shutil.rmtree(output / _UNFINISHED, ignore_errors=True)
            outcome = f"{output} holds this corpus already: nothing was done{_older_rules(found)}"
        else:
            _begin(output, plan.made_from, settings)
            _Preparation(output, plan, settings, processes, report).run(given or vocabulary)
            outcome = f"{output} holds the corpus"
    report(outcome, 0, 0)
    return Manifest.read(output)


def _check_arguments(
    inputs: Sequence[str | Path], output: Path, held_out: float, drop_repeated_lines: int | None
) -> None:
    if not 0 <= held_out < 1:
        raise DataError(f"held_out is {held_out}: it is a fraction of the documents, at least 0 and below 1")
    if drop_repeated_lines is not None and drop_repeated_lines < 1:
        raise DataError(f"drop_repeated_lines is {drop_repeated_lines}: it is a number of documents, at least 1")
    for entry in inputs:
        if Path(entry).is_dir() and Path(os.path.realpath(output)).is_relative_to(os.path.realpath(entry)):
            raise DataError(f"output {output} lies within the input folder {entry}: choose a place outside")
    if output.exists() and not output.is_dir():
        raise DataError(f"output {output} is a file: choose a folder")


def _corpus_in(output: Path, made_from: dict[str, Any]) -> Manifest | None:
    """Return the manifest if `output` holds the corpus. Raises `DataError` if it holds one made from something else."""
    if not (output / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.read(output)
    differing = [name.replace("_", " ") for name, value in made_from.items() if manifest.made_from.get(name) != value]
    if differing:
        raise DataError(
            f"{output} holds another corpus, which differs in {', '.join(differing)}: "
            "choose another folder, or pass --overwrite"
        )
    manifest.check_files(output, checksums=True)
    return manifest


def _older_rules(manifest: Manifest) -> str:
    """Return a sentence if an earlier version made a corpus, perhaps of other text than English, as if it were."""
    made_from = manifest.made_from
    names = [entry.get("name") for entry in made_from["inputs"]]
    if made_from.get("tokenizer") or "normalisation" in made_from or names == [PYTHON_DOCS]:
        return ""
    return (
        ". An earlier version made it uncased and without accents; --overwrite lets the text decide, "
        "which differs in most languages but English"
    )


def _begin(output: Path, made_from: dict[str, Any], settings: TextSettings) -> None:
    """Make a folder for unfinished work, unless there is one for the same inputs, settings and rules: go on in that."""
    conditions = {
        "format_version": FORMAT_VERSION,
        "rules": _RULES,
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "piece_bytes": PIECE_BYTES,
        "strict": settings.strict,
        **made_from,
    }
    content = json.dumps(conditions).encode()
    path = output / _UNFINISHED / _CONDITIONS
    if (output / MANIFEST_NAME).exists() or not path.exists() or read_bytes(path) != content:
        _clear(output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path, DataError) as file:
            file.write(content)


def _clear(output: Path) -> None:
    """Remove what an earlier preparation left: the manifest first, so that the rest is no longer a corpus."""
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    for path in (output / _UNFINISHED).glob("*"):
        if path.name != SPOOLED_FILE:  # what this preparation reads
            path.unlink()
    _remove(output, "")
    _remove(output, _PARTIAL)


def _remove(output: Path, suffix: str) -> None:
    """Remove the files of a corpus whose names have `suffix` added; `_PARTIAL` are those that a kill left unfinished.

    Nobody writes them now, since this preparation is alone in the folder.
    """
    names = [DROPPED_FILE, MANIFEST_NAME, *(f"{TOKENIZER_FOLDER}/{name}" for name in TOKENIZER_FILES)]
    for split in (TRAIN, HELD_OUT):
        names += [frequencies_file(split), *(shard_file(f"{split}-[0-9]*", part) for part in (*SHARD_PARTS, ORIGINS))]
    for path in [path for name in names for path in output.glob(name + suffix)]:
        path.unlink()


@dataclass(frozen=True)
class Plan:
    """What a preparation reads, in portions; `made_from` is for the manifest, `dropped` lists the files left out."""

    made_from: dict[str, Any]
    portions: tuple[Portion, ...]
    dropped: Dropped


def make_plan(
    sources: Sequence[Source],
    others: Sequence[Source],
    settings: TextSettings,
    made_from: dict[str, Any],
    report: Report,
) -> Plan:
    """Read all sources once, and cut them into portions. Those that cannot be read, and the `others`, are left out."""
    inputs, pieces, dropped = [], [], Dropped()
    for other in others:
        dropped.note(other, 0, OTHER_KIND, "")
    done, total = 0, sum(source.size for source in sources)
    report("reading", done, total)
    with ThreadPoolExecutor(_READERS) as threads:
        scans = threads.map(lambda source: scan(source, PIECE_BYTES, settings.whole_files), sources)
        for source, found in zip(sources, scans, strict=True):
            inputs.append({"name": source.name, "bytes": source.size or found.content_bytes, "sha256": found.sha256})
            pieces += pieces_of(source, found, settings.drop_into(dropped))
            done += source.size
            report("reading", done, total)
    return Plan({"inputs": inputs, **made_from}, tuple(_portions(pieces)), dropped)


def _portions(pieces: Iterable[Piece]) -> Iterator[Portion]:
    """Gather small pieces into portions of `PIECE_BYTES` bytes or a little more."""
    number, gathered = 0, []
    size = 0
    for piece in pieces:
        gathered.append(piece)
        size += piece.size
        if size >= PIECE_BYTES:
            yield Portion(number, tuple(gathered))
            number, gathered, size = number + 1, [], 0
    if gathered:
        yield Portion(number, tuple(gathered))


@dataclass(frozen=True)
class _Preparation:
    """The stages of the work on a plan."""

    output: Path
    plan: Plan
    settings: TextSettings
    processes: int
    report: Report

    def run(self, given: Tokenizer | VocabularySettings) -> None:
        """Go through all stages, with the tokenizer `given` or one that is trained with the settings `given`."""
        output, made_from, portions = self.output, self.plan.made_from, self.plan.portions
        unfinished, settings = output / _UNFINISHED, self.settings
        if (most := made_from["drop_repeated_lines"]) is not None:
            repeated = find_repeated_lines(unfinished, portions, settings, most, self._do)
            settings = replace(settings, repeated_lines=repeated)
        if isinstance(given, VocabularySettings):
            self._train_tokenizer(given, settings)
            made_from = {**made_from, "normalisation": parse_json(read_bytes(unfinished / _NORMALISATION))}
        else:
            save_tokenizer(given, output / TOKENIZER_FOLDER)
        tokenizer = load_tokenizer(output / TOKENIZER_FOLDER)
        writer = PartWriter(settings, tokenizer, min(_WORD_BYTES, _WORD_BYTES_OF_HOST // self.processes))
        tasks_of_parts = [Task(portion, part_path(unfinished, portion.number), portion.size) for portion in portions]
        self._do("encoding", writer, tasks_of_parts)
        selection = select(
            unfinished, len(portions), made_from["held_out"], made_from["drop_duplicates"], self.plan.dropped.first
        )
        if selection.holds_out_more_than(made_from["held_out"]):
            made_from = {**made_from, "held_out_more": True}
        shards = selection.shards(TOKENS_PER_SHARD)
        tasks = [Task(shard, unfinished / f"{shard.name}.json", 2 * shard.tokens) for shard in shards]
        vocab_size, unknown = tokenizer.get_vocab_size(), special_tokens(tokenizer).unknown
        self._do("writing shards", partial(write_shard, output, selection, vocab_size, unknown), tasks)
        records: dict[str, list[Path]] = {}
        for task in tasks:
            records.setdefault(task.input.split, []).append(task.output)
        _remove(output, _PARTIAL)
        write_manifest(output, made_from, records, self._dropped(selection.duplicates))
        shutil.rmtree(unfinished, ignore_errors=True)

    def _do(self, stage: str, function: Callable[[Input, Path], None], tasks: Sequence[Task[Input]]) -> None:
        """Call `function` with the input and the output of each task whose output is missing."""
        missing = [task for task in tasks if not task.output.exists()]
        done, total = 0, sum(task.size for task in missing)
        self.report(stage, done, total)
        # The work before took more memory than this process needs while its workers work.
        return_freed_memory()
        for task in run_tasks(function, missing, self.processes):
            done += task.size
            self.report(stage, done, total)

    def _train_tokenizer(self, vocabulary: VocabularySettings, settings: TextSettings) -> None:
        folder, portions, unfinished = self.output / TOKENIZER_FOLDER, self.plan.portions, self.output / _UNFINISHED
        if (folder / TOKENIZER_FILES[-1]).exists():
            return
        writer, tasks = sampling(settings, portions, unfinished, vocabulary.sample_bytes)
        self._do("sampling", writer, tasks)
        self.report("training the tokenizer", 0, 0)
        held_out, left_out = self.plan.made_from["held_out"], self.plan.dropped.first
        samples = TextSample(settings, tasks, held_out, left_out)
        trained = train_tokenizer(samples.texts, vocabulary)
        with written_aside(unfinished / _NORMALISATION, DataError) as file:
            file.write(json.dumps(f"{trained.scripts}: {trained.normalisation}").encode())
        save_tokenizer(trained.tokenizer, folder)

    def _dropped(self, duplicates: int) -> Iterator[Dropped]:
        """Yield what each step of the work left out."""
        yield self.plan.dropped
        for portion in self.plan.portions:
            yield load_dropped(self.output / _UNFINISHED, portion.number)
        if duplicates:
            yield Dropped({"duplicate": duplicates})
