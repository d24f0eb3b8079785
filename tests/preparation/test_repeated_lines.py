"""Lines that stand in many documents are left out, exactly, on any number of processes and across interruptions."""

import json
import resource
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lucid.cli.prepare import prepare as prepare_command
from lucid.data import Corpus, Manifest, load_tokenizer
from lucid.errors import DataError
from lucid.preparation import prepare, repeated_lines, stages
from lucid.preparation.inputs.sources import find_sources
from lucid.preparation.line_filter import digest
from lucid.preparation.parts import TextSettings
from lucid.preparation.processes import Task
from lucid.preparation.stages import make_plan

NOTICE, MENU = "We use cookies. Accept them all.", "Home | About | Contact"


def write_pages(path: Path, pages: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))


def texts_of(folder: Path) -> list[str]:
    """The documents of a corpus as its tokenizer decodes them."""
    corpus, tokenizer = Corpus.open(folder), load_tokenizer(folder / "tokenizer")
    starts = corpus.sentences.at(corpus.documents.at(range(corpus.document_count + 1)))
    return [tokenizer.decode(corpus.tokens(range(start, stop)).tolist()) for start, stop in pairwise(starts)]


def prepared(pages: list[str], folder: Path, most: int, **options: object) -> Manifest:
    write_pages(folder / "pages.jsonl", pages)
    options = {"vocab_size": 150, "held_out": 0} | options
    return prepare([folder / "pages.jsonl"], folder / "corpus", drop_repeated_lines=most, **options)  # type: ignore[arg-type]


def page(number: int, *more: str) -> str:
    return "\n".join([f"Page {number} says something of its own.", *more, "12", f"It ends with number {number}."])


def test_lines_in_more_than_so_many_documents_are_left_out_counted_and_shown(tmp_path: Path) -> None:
    pages = [page(number, f"  {NOTICE} ", NOTICE) for number in range(4)] + [page(number, MENU) for number in (4, 5, 6)]
    manifest = prepared([*pages, f"{NOTICE}\n\n{NOTICE}"], tmp_path, 3)
    assert manifest.dropped == {"repeated line": 10, "nothing but repeated lines": 1}
    found = texts_of(tmp_path / "corpus")
    assert len(found) == 7
    assert "cookies" not in " ".join(found)
    assert sum("home | about" in text for text in found) == 3
    assert all(" 12 " in text for text in found)  # it is in all of them, and has no letter
    listed = (tmp_path / "corpus" / "dropped.txt").read_text().splitlines()
    assert listed == [
        f"pages.jsonl:1\trepeated line\t{NOTICE}",
        "pages.jsonl:8\tnothing but repeated lines",
    ]


def test_copies_of_a_document_count_as_one(tmp_path: Path) -> None:
    pages = [page(1)] * 5 + [page(2)]
    assert prepared(pages, tmp_path, 1).dropped == {}
    assert prepared(pages, tmp_path, 1, drop_duplicates=True, overwrite=True).dropped == {"duplicate": 4}


def test_documents_that_differ_in_repeated_lines_alone_are_duplicates(tmp_path: Path) -> None:
    pages = [page(1, NOTICE), page(1, NOTICE, "", NOTICE), page(2, NOTICE), page(3, MENU), page(4, NOTICE)]
    manifest = prepared(pages, tmp_path, 3, drop_duplicates=True)
    assert manifest.dropped == {"duplicate": 1, "repeated line": 5}
    held_out = prepared(pages, tmp_path, 3, held_out=0.3, overwrite=True)  # equal ones are in one split
    assert sum(split.documents for split in held_out.splits.values()) == 5


def test_a_gap_ends_a_paragraph(tmp_path: Path) -> None:
    pages = [
        f"{number} is a line of text that somebody has wrapped\n{NOTICE}\nhere, and goes on with {number} in the next."
        for number in range(3)
    ]
    assert prepared(pages, tmp_path, 2).splits["train"].sentences == 6


@settings(max_examples=15)
@given(
    pages=st.lists(st.lists(st.sampled_from("abcdefgh12"), min_size=1, max_size=5), min_size=1, max_size=12),
    most=st.integers(1, 4),
    at_once=st.sampled_from([1, 3, 1000]),
)
def test_the_found_lines_are_those_of_a_plain_count(
    tmp_path_factory: pytest.TempPathFactory, pages: list[list[str]], most: int, at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("count")
    texts = ["\n".join(lines) for lines in pages]
    write_pages(folder / "pages.jsonl", texts)
    reading = TextSettings(whole_files=False, language="en", strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "PIECE_BYTES", 50)
        patch.setattr(repeated_lines, "_COUNTS_AT_ONCE", at_once)
        sources, _ = find_sources([folder / "pages.jsonl"])
        portions = make_plan(sources, [], reading, {}, lambda *done: None).portions

        def do(stage: str, function: Callable[[Any, Path], None], tasks: Sequence[Task[Any]]) -> None:
            for task in reversed(tasks):
                function(task.input, task.output)

        found = np.load(repeated_lines.find_repeated_lines(folder, portions, reading, most, do))
    counted = Counter(line for text in set(texts) for line in set(text.split("\n")) if not line.isdigit())
    expected = {digest(line) for line, count in counted.items() if count > most}
    assert [hashes.astype(">u8").tobytes() for hashes in found.T] == sorted(expected)


def test_no_part_stays_open_while_counts_are_added_up(tmp_path: Path) -> None:
    parts = [tmp_path / f"{number}.npy" for number in range(40)]
    for part in parts:
        np.save(part, np.array([[5, 9], [1, 1], [1, 1]], np.uint64))
    with parts[0].open() as file:
        free = file.fileno()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, limits[1]))
    try:
        repeated_lines.RangeOfCounts(parts, 39)((0, 9), tmp_path / "found.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert np.load(tmp_path / "found.npy").tolist() == [[5], [1]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def when(stage: str, action: Callable[[], object]) -> Callable[[str, int, int], None]:
    return lambda name, done, total: action() if (name, done) == (stage, 0) else None


def interrupt() -> None:
    raise KeyboardInterrupt


def test_the_corpus_does_not_depend_on_processes_and_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PIECE_BYTES", 3000)
    monkeypatch.setattr(repeated_lines, "_COUNTS_AT_ONCE", 50)
    write_pages(tmp_path / "pages.jsonl", [page(number, NOTICE if number % 2 else MENU) for number in range(99)])

    def made(name: str, processes: int, **options: object) -> dict[str, bytes]:
        options = {"vocab_size": 100, "drop_repeated_lines": 40, "processes": processes} | options
        prepare([tmp_path / "pages.jsonl"], tmp_path / name, **options)  # type: ignore[arg-type]
        return files_of(tmp_path / name)

    expected = made("one", 1)
    assert Manifest.read(tmp_path / "one").dropped == {"repeated line": 99}
    unfinished = tmp_path / "two" / "unfinished"
    times = set()
    for stage, work in (
        ("counting lines", "texts-000000.npy"),
        ("finding repeated lines", "texts-000000.npy"),
        ("sampling", "repeated-lines.npy"),
        ("encoding", "repeated-lines.npy"),
    ):
        with pytest.raises(KeyboardInterrupt):
            made("two", 1, report=when(stage, interrupt))
        times.add((work, (unfinished / work).stat().st_mtime_ns))
    assert len(times) == 2  # each done once
    assert [path.name for path in unfinished.glob("*.npy")] == ["repeated-lines.npy"]  # the counts are gone
    assert made("two", 2) == expected
    with pytest.raises(DataError, match="differs in drop repeated lines"):
        made("two", 1, drop_repeated_lines=41)


def test_a_corpus_without_the_switch_is_the_one_of_before(tmp_path: Path) -> None:
    write_pages(tmp_path / "pages.jsonl", [page(number, NOTICE) for number in range(9)])
    without = prepare([tmp_path / "pages.jsonl"], tmp_path / "a", vocab_size=100)
    with_it = prepare([tmp_path / "pages.jsonl"], tmp_path / "b", vocab_size=100, drop_repeated_lines=9)
    assert with_it.identity == without.identity
    assert with_it.dropped == {}


@pytest.mark.parametrize(("most", "code"), [("0", 2), ("x", 2), ("3", 0)])
def test_the_option_takes_a_number_of_documents(tmp_path: Path, most: str, code: int) -> None:
    application = typer.Typer()
    application.command()(prepare_command)
    write_pages(tmp_path / "pages.jsonl", [page(number, NOTICE) for number in range(9)])
    arguments = [str(tmp_path / "pages.jsonl"), "-o", str(tmp_path / "corpus"), "--vocab-size", "100"]
    finished = CliRunner().invoke(application, [*arguments, "--drop-repeated-lines", most])
    assert finished.exit_code == code
    assert not code or "--drop-repeated-lines" in finished.output
    assert code or f"9 repeated line, such as pages.jsonl:1 ({NOTICE})" in finished.output


def test_a_damaged_file_of_counts_is_refused_by_its_name(tmp_path: Path) -> None:
    pages = [page(number, NOTICE) for number in range(9)]
    with pytest.raises(KeyboardInterrupt):
        prepared(pages, tmp_path, 3, report=when("finding repeated lines", interrupt))
    damaged = tmp_path / "corpus" / "unfinished" / "lines-000000.npy"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"lines-000000\.npy cannot be read \(.*\): remove it, and run the same"):
        prepared(pages, tmp_path, 3)


def test_no_number_of_documents_is_below_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="drop_repeated_lines is 0: it is a number of documents, at least 1"):
        prepared([page(1)], tmp_path, 0)
