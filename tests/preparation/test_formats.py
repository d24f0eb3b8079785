"""CSV, HTML, Markdown, and what has no suffix: which documents they hold."""

import bz2
import csv
import io
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import left_out, texts

from lucid.errors import DataError
from lucid.preparation import prepare, read_documents
from lucid.preparation.inputs.documents import Reader, scan
from lucid.preparation.inputs.kinds import kind_by_content
from lucid.preparation.inputs.omissions import refuse
from lucid.preparation.inputs.pieces import pieces_of
from lucid.preparation.inputs.sources import find_sources

# Cells of .tsv have no line breaks.
CELLS = st.text('ab, ;\t"\n.\u00e4', max_size=12)


@pytest.mark.parametrize("suffix", [".csv", ".tsv.xz"])
@given(rows=st.lists(CELLS.filter(str.strip), min_size=1, max_size=20), quoting=st.booleans(), marked=st.booleans())
def test_rows_hold_what_a_csv_writer_wrote_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[str], quoting: bool, marked: bool
) -> None:
    path, file = tmp_path_factory.mktemp("csv") / f"a{suffix}", io.StringIO()
    rows = [row.replace("\n", '"') for row in rows] if suffix.startswith(".tsv") else rows
    quotes = csv.QUOTE_ALL if quoting else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter="," if suffix == ".csv" else "\t", quoting=quotes, lineterminator="\r\n")
    writer.writerow(["id", "text"])
    lines = []
    for row in rows:
        lines.append(1 + file.getvalue().count("\n"))
        writer.writerow(["x" * len(lines), row])
    content = file.getvalue().encode("utf-8-sig" if marked else "utf-8")
    path.write_bytes(lzma.compress(content) if suffix.endswith(".xz") else content)
    ((source,), _) = find_sources([path])
    for piece_bytes in (1, 30, 1 << 20):
        reader = Reader()
        pieces = pieces_of(source, scan(source, piece_bytes, False), refuse)
        found = [document for piece in reversed(pieces) for document in list(reader.documents(piece, refuse))[::-1]]
        reader.close()
        assert [(document.line, document.text) for document in reversed(found)] == list(zip(lines, rows, strict=True))
    assert len(pieces_of(source, scan(source, 30, False), refuse)) > len(rows) // 20


@pytest.mark.parametrize("mark", ",;|\t")
def test_the_mark_between_the_cells_is_found_in_the_first_line(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(f'id{mark}text\n1{mark}one\n\n2{mark}5" two\n')
    assert texts(tmp_path / "a.csv") == ["one", '5" two']


def test_a_quote_in_tsv_is_text_unless_another_ends_the_cell(tmp_path: Path) -> None:
    found = [
        '"Quoted words, he said',
        "third row",
        '"Again" a quotation',
        "End",
        'a "b"\tc',
        '"one" or "two"',
        '"',
        "x",
    ]
    cells = [*found[:3], '"End"', '"a ""b""\tc"', *found[5:]]
    (tmp_path / "a.tsv").write_text("id\ttext\n\n" + "".join(f'"{n}\t{cell}\n' for n, cell in enumerate(cells)))
    assert texts(tmp_path / "a.tsv") == found
    (tmp_path / "a.tsv").write_text('text\n"two\nlines"\nx\ty\n')
    assert texts(tmp_path / "a.tsv", drop=lambda *fault: None) == ['"two', 'lines"']
    assert left_out(tmp_path / "a.tsv") == [(4, "damaged row")]


def test_a_damaged_row_is_left_out_and_the_rows_after_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,one\n2,"two" x\n3,three\n4\n5,"fi\nve"\n6,s\xffx\n7,"seven\n')
    good = read_documents([tmp_path / "a.csv"], drop=lambda *fault: None)
    assert [(document.line, document.text) for document in good] == [(2, "one"), (4, "three"), (6, "fi\nve")]
    damaged = "damaged row"
    assert left_out(tmp_path / "a.csv") == [(3, damaged), (5, damaged), (8, "not UTF-8"), (9, damaged)]


@pytest.mark.parametrize("start", ['"', ""])
def test_a_row_that_is_too_long_is_left_out_and_takes_no_more(
    tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pieces", "delimited"):
        monkeypatch.setattr(f"lucid.preparation.inputs.{module}.LONGEST_LINE", 100)
    lines = "x\n" * 70 if start else "x" * 140 + "\n"
    (tmp_path / "a.csv").write_text(f"id,text\n1,{start}{lines}2,two\n")
    assert left_out(tmp_path / "a.csv")[0] == (2, "longer than 16 MiB")
    assert texts(tmp_path / "a.csv", drop=lambda *fault: None)[-1:] == ["two"]


def test_html_is_read_as_a_browser_shows_it(tmp_path: Path) -> None:
    (tmp_path / "a.HTM").write_bytes(
        b"\xef\xbb\xbf<!DOCTYPE html><html><head><title>Tea &amp; more</title><style>p { x }</style>\r\n"
        b"<script>if (a < b) document.write('<p>no')</script></head><body>\r\n"
        b"<nav><ul><li><a href=/>Home</a></ul></nav>\r\n"
        b"<h1>How  to\r\nbrew</h1><p>Boil <b>w</b>ater <!-- not > this -->now.<br>Wait &lt;3 minutes.\r\n"
        b"<ul><li>One<li>Two</ul><pre>a = 1\nb = 2</pre><table><tr><td>x<td>y</table>"
        b"<noscript>No</noscript><a title='a > b'>If 1 < 2, drink</a> &#99999999999;<button>Buy</button></body>"
    )
    assert texts(tmp_path / "a.HTM") == [
        "Tea & more\n\nHow to brew\n\nBoil water now.\nWait <3 minutes.\n\nOne\n\nTwo\n\na = 1\nb = 2\n\nx y\n\n"
        "If 1 < 2, drink \ufffd"
    ]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>Use the <button> element.<p>It <b>ends</b>.", "Use the element.\n\nIt ends."),
        ("<p>Vec<Object> is a list<p>more", "Vec is a list\n\nmore"),
        ("<nav>x</p><p>rest", "x\n\nrest"),
        ("<nav>a<nav>b</nav>c<p>rest<nav>no</nav>.", "a\n\nc\n\nrest\n\n."),
        ("one <svg><svg/></svg>two <button>no<script>'</button>'</script></button>three", "one two three"),
        ("Use <script> and <textarea>. <script>no</script>End", "Use End"),
        ("<script>yes</script><b>Use <script> here", "Use here"),
    ],
)
def test_an_element_that_does_not_end_is_taken_for_text(tmp_path: Path, page: str, text: str) -> None:
    (tmp_path / "a.html").write_text(page)
    assert texts(tmp_path / "a.html") == [text]


@pytest.mark.parametrize(
    ("page", "text"),
    [
        (
            "<p><ruby>東京<rt>とうきょう</rt></ruby>の<ruby>桜<rp>(</rp><rt>さくら</rt><rp>)</rp></ruby>です。",
            "東京の桜です。",
        ),
        ("<ruby>東<rt>とう<rb>京<rt>きょう</ruby>の<ruby><rb>桜</rb><rtc><rt>さくら</rt></rtc></ruby>。", "東京の桜。"),
        ("<p>The <ruby> element has <rt> in it.<p>More", "The element has in it.\n\nMore"),
        ("<p>one<nobr> two</nobr><picture><source><img></picture> <output>3</output><p>", "one two 3"),
    ],
)
def test_elements_within_a_line_do_not_break_it_and_readings_are_left_out(tmp_path: Path, page: str, text: str) -> None:
    (tmp_path / "a.html").write_text(page)
    assert texts(tmp_path / "a.html") == [text]


@pytest.mark.parametrize(
    "part",
    ["<a ", "<!--", "<a href='", "<", "</", "<nav>", "<p>", "&#", "<script>", "<![CDATA[", "<rt>", "<svg><nav>"],
)
def test_tags_that_do_not_end_cost_no_more_time_than_others(tmp_path: Path, part: str) -> None:
    # Where the time grows with the square of the length, this takes an hour.
    (tmp_path / "a.html").write_text("good" + part * 100_000)
    assert texts(tmp_path / "a.html")[0].startswith("good")


def test_markdown_becomes_text(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(
        "---\ntitle: no\n---\n# How to *brew*\n\nBoil [water](http://a.b/c) and\n![no](d.png) **wait**.\n\n"
        "- one\n- two\n\n```py\na = 1\n\nb = 2\n```\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n> Quoted\n> twice\n\n"
        "<nav>no</nav>\n\n[r]: http://x\n"
    )
    assert texts(tmp_path / "a.md") == [
        "How to brew\n\nBoil water and wait.\n\none\n\ntwo\n\na = 1\nb = 2\n\nx y\n\n1 2\n\nQuoted twice"
    ]


def test_two_rules_are_no_front_matter(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("---\n\nKept.\n\n---\n\nAs well.\n")
    assert texts(tmp_path / "a.md") == ["Kept.\n\nAs well."]


def test_a_long_file_of_markdown_is_translated_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid.preparation.inputs.markup._AT_ONCE", 20)
    (tmp_path / "a.md").write_text("A *short* paragraph.\n\n" * 10)
    assert texts(tmp_path / "a.md") == ["\n\n".join(["A short paragraph."] * 10)]


@pytest.mark.parametrize("name", ["a.html", "a.md.bz2"])
def test_a_page_that_is_too_long_is_left_out(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid.preparation.inputs.pieces.LONGEST_LINE", 100)
    content = b"word " * 21
    (tmp_path / name).write_bytes(bz2.compress(content) if name.endswith("bz2") else content)
    assert left_out(tmp_path / name) == [(1, "longer than 16 MiB")]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"text": "one"}\n{"text": "two"}\n', ".jsonl"),
        (b'{"text": "' + b"x" * 100_000, ".jsonl"),
        (b"{braces} begin this text.\n", ".txt"),
        (b"\xef\xbb\xbf<!doctype HTML><p>x", ".html"),
        (b"x < y\n", ".txt"),
        ("ä".encode() * 40_000, ".txt"),
        (b"", ".txt"),
        (b"PAR1\0\0", ".parquet"),
        (b"l\xe4tin", None),
        (b"one\0two", None),
    ],
)
@pytest.mark.parametrize("packing", ["", ".xz"])
def test_a_file_without_a_suffix_is_known_by_its_content(
    tmp_path: Path, content: bytes, kind: str | None, packing: str
) -> None:
    (tmp_path / "a").write_bytes(lzma.compress(content) if packing else content)
    assert kind_by_content(tmp_path / "a") == (None if kind == ".parquet" and packing else kind, packing)


def test_a_folder_of_files_without_suffixes_is_read(tmp_path: Path) -> None:
    (tmp_path / "AA").mkdir()
    (tmp_path / "AA" / "wiki_00").write_text('{"text": "one"}\n')
    (tmp_path / "AA" / "wiki_01.bz2").write_bytes(bz2.compress(b'{"text": "two"}\n'))
    (tmp_path / "AA" / "program").write_bytes(b"\x7fELF\0")
    (tmp_path / "README").write_text("three")
    (tmp_path / "page").write_text("<html><p>four")
    assert texts(tmp_path) == ["one", "two", "four"]
    assert [source.name for source in find_sources([tmp_path])[1]] == ["AA/program", "README"]
    assert texts(tmp_path / "README") == ["three"]
    (tmp_path / "README").write_text("BZhang writes.")
    assert texts(tmp_path / "README", kind="txt") == ["BZhang writes."]


def test_what_a_dot_hides_is_read_if_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden" / ".git"
    folder.mkdir(parents=True)
    for name in ("a.txt", ".b.txt", "object"):
        (folder / name).write_text('{"text": "one"}')
    (tmp_path / "a.txt").write_text("two")
    assert texts(tmp_path) == ["two"]
    assert find_sources([tmp_path])[1] == []
    assert texts(folder / ".b.txt") == ['{"text": "one"}']
    assert texts(folder) == ['{"text": "one"}', "one"]


def test_a_cache_with_links_to_its_files_is_read_once(tmp_path: Path) -> None:
    for folder in ("blobs", "snapshots"):
        (tmp_path / folder).mkdir()
    for name in ("a.jsonl", "b.csv", "other"):
        (tmp_path / "blobs" / f"0123{name[0]}").write_text('{"text": "one"}' if name != "b.csv" else "text\ntwo\n")
    for name in ("a.jsonl", "b.csv"):
        (tmp_path / "snapshots" / name).symlink_to(f"../blobs/0123{name[0]}")
    assert [source.name for source in find_sources([tmp_path])[0]] == [
        "blobs/0123o",
        "snapshots/a.jsonl",
        "snapshots/b.csv",
    ]
    assert find_sources([tmp_path])[1] == []


def test_a_format_is_for_files_whose_names_tell_none(tmp_path: Path) -> None:
    (tmp_path / "a.dat").write_text("text\none\n")
    (tmp_path / "b.txt").write_text("two")
    assert texts(tmp_path / "a.dat", tmp_path / "b.txt", kind="csv") == ["one", "two"]
    for name in ("c.dat", "folder/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lzma.compress(b"text\nthree\n"))
    assert texts(tmp_path / "c.dat", tmp_path / "folder", kind="csv") == ["three", "three"]
    with pytest.raises(DataError, match="the format 'pdf' is unknown: it is one of txt, jsonl, csv"):
        texts(tmp_path / "a.dat", kind="pdf")
    with pytest.raises(DataError, match=r"a\.dat' is of an unknown kind: .* or say with --format what it is"):
        texts(tmp_path / "a.dat")


def test_each_input_may_have_its_own_field(tmp_path: Path) -> None:
    for name, field in (("a.csv", "body"), ("b=c.csv", "d=e"), ("f.csv", "text")):
        (tmp_path / name).write_text(f"{field}\n{name}\n")
    paths = [str(tmp_path / name) for name in ("a.csv", "b=c.csv", "f.csv")]
    fields = [f"{paths[0]}=body", f"{paths[1]}=d=e"]
    assert texts(*paths, text_field=fields) == ["a.csv", "b=c.csv", "f.csv"]
    assert texts(*paths[:2], text_field=["body", f"{paths[1]}=d=e"]) == ["a.csv", "b=c.csv"]
    for wrong, message in [
        (["other.csv=body"], "--text-field 'other.csv=body' names no input"),
        (["one", "two"], r"gives .*a\.csv the fields 'one', 'two': give one, or INPUT=FIELD"),
    ]:
        with pytest.raises(DataError, match=message):
            texts(*paths, text_field=wrong)


def test_the_fields_of_a_corpus_do_not_depend_on_how_the_inputs_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, field in (("a.csv", "text"), ("b.csv", "body")):
        rows = "".join(f'"{name} says number {number}. It ends."\n' for number in range(9))
        (tmp_path / name).write_text(f"{field}\n{rows}")
    outcomes: list[str] = []

    def fields(inputs: list[str], text_field: str | list[str]) -> object:
        output, report = (
            tmp_path / "-".join(Path(name).stem for name in inputs),
            lambda stage, *_: outcomes.append(stage),
        )
        made = prepare(inputs, output, vocab_size=64, text_field=text_field, report=report)
        return made.made_from["text_field"]

    monkeypatch.chdir(tmp_path)
    assert fields(["a.csv"], ["a.csv=text"]) == "text"
    assert fields([f"{tmp_path}/a.csv"], "text") == "text"
    assert fields(["a.csv", "b.csv"], ["text", "b.csv=body"]) == ["text", "body"]
    assert fields(["a.csv", "./b.csv"], ["./b.csv=body"]) == ["text", "body"]
    assert sum(outcome.endswith("nothing was done") for outcome in outcomes) == 2
