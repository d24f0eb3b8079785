"""`lucid report`: what the page says of a run, whatever is missing, and how a browser shows it."""

import json
import os
import re
import shutil
from html.parser import HTMLParser

import pytest
from browser import browser, look

import lucid.analysis.report.page as lucid_page
from lucid.analysis.report import facts

SECTIONS = [
    *("What the curves say", "Results", "Curves", "Training", "Speed and waits", "Attempts", "Checkpoints", "Corpora"),
    *("Machine and software", "Settings"),
]
VOID = {"meta", "br", "path", "use", "rect", "line"}


class Page(HTMLParser):
    """A page, parsed: its text, its headings, and the rows of its tables."""

    def __init__(self, page):
        super().__init__()
        self.open, self.headings, self.rows, self.outside, self.words = [], [], [], [], []
        self.feed(page)
        self.close()
        assert not self.open, f"{self.open} are not closed"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in VOID or tag in ("path", "use", "rect", "line"):
            self.open.append(tag)
        if tag == "meta":
            self.open = [each for each in self.open if each != "meta"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        self.outside += [value for key, value in given.items() if key in ("src", "href") and not value.startswith("#")]
        assert tag not in ("script", "link", "iframe", "img")

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" in self.open or "svg" in self.open:
            return
        self.words.append(text)
        if self.open and self.open[-1] == "h2":
            self.headings.append(text)
        elif self.open and self.open[-1] in ("td", "th") and self.rows:
            self.rows[-1][-1] += text

    def value(self, label):
        """The values beside a label, of the first row that has it."""
        return next(row[1:] for row in self.rows if row and row[0] == label)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def report(lucid, tmp_path, monkeypatch):
    """A function that reports runs, and returns the page, without curves unless they are asked for."""

    def write(*runs, curves=False):
        if not curves:
            monkeypatch.setattr(lucid_page, "panels_of", lambda runs: [])
        code, output, errors = lucid("report", *runs, "--output", tmp_path / "page.html")
        assert (code, output, errors) == (0, f"{tmp_path / 'page.html'}\n", "")
        return (tmp_path / "page.html").read_text(encoding="utf-8")

    return write


@pytest.fixture
def copied(run_folder, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(run_folder, tmp_path / "copy")


def entries_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_page_has_all_that_the_folder_of_a_run_says(report, run_folder):
    text = report(run_folder, curves=True)
    page = Page(text)
    assert page.headings == SECTIONS
    assert not page.outside
    assert "@import" not in text
    assert text.count("<svg") >= 8
    held_out = [entry for entry in entries_of(run_folder) if entry.get("held_out_mlm_loss")][-1]
    assert page.value("held-out MLM loss") == [f"{held_out['held_out_mlm_loss']:.3f}"]
    assert page.value("the same by bigrams") == [f"{held_out['held_out_bigram_loss']:.3f}"]
    assert page.value("steps") == ["6 of 6 steps"]
    assert page.value("samples") == ["24"]
    assert page.value("model.hidden_size") == ["16", "768"]
    assert page.value("optimizer.name") == ["adamw"]
    assert "Finished: 6 of 6 steps of 4 sequences of 32 tokens" in page.text
    assert "newest" in page.text


def test_runs_stand_side_by_side(report, lucid, run_folder, tmp_path):
    file = run_folder.parent / "run.yaml"
    assert lucid("train", file, f"run_folder={tmp_path / 'other'}", "optimizer.learning_rate=1.0e-3")[0] == 0
    text = report(run_folder, tmp_path / "other")
    page = Page(text)
    assert page.headings == [heading for heading in SECTIONS if heading != "Curves"]
    assert page.value("optimizer.learning_rate") == ["0.003", "0.001"]
    assert page.value("steps") == ["6 of 6 steps"] * 2
    assert page.value("model.hidden_size") == ["16", "768"]
    assert "2 runs: run, other" in page.text


def test_names_are_shown_as_they_are(report, run_folder, tmp_path):
    name = "a<b> & 'c' \"d\" $x$"
    shutil.copytree(run_folder, tmp_path / name)
    text = report(tmp_path / name, run_folder)
    assert name in Page(text).text
    assert "<b> &" not in text


def test_an_unfinished_run_without_a_checkpoint_has_a_page(report, copied):
    shutil.rmtree(copied / "checkpoints")
    start, _ = (copied / "attempts.jsonl").read_text().splitlines()
    (copied / "attempts.jsonl").write_text(f"{start}\n")
    entries = entries_of(copied)[:2]
    (copied / "metrics.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    page = Page(report(copied))
    assert "it still runs, or was killed" in page.text
    assert "There is none." in page.text
    assert page.value("model.hidden_size") == ["16", "768"]  # the attempt has noted the settings
    assert page.value("state") == ["Unfinished"]


def test_a_copy_without_its_corpus_says_what_the_corpus_held(report, copied, corpus_folder):
    lines = (copied / "attempts.jsonl").read_text()
    tokens = json.loads(lines.splitlines()[0])["corpora"][0]["tokens"]
    (copied / "attempts.jsonl").write_text(lines.replace(str(corpus_folder), "/moved/corpus"))
    assert Page(report(copied)).value("tokens") == [f"{tokens:,}"]


def test_a_run_of_an_earlier_version_and_damaged_files_are_named(report, copied):
    (copied / "attempts.jsonl").unlink()
    newest = max((copied / "checkpoints").iterdir())
    (newest / "state.json").write_text("{")
    known = {"step", "mlm_loss", "loss", "held_out_mlm_loss", "learning_rate"}
    lines = [json.dumps({key: value for key, value in entry.items() if key in known}) for entry in entries_of(copied)]
    (copied / "metrics.jsonl").write_text("\n".join([*lines, "{damaged"]))
    with (copied / "metrics.jsonl").open("ab") as file:
        file.write(b"\xff\n[]")
    page = Page(report(copied))
    assert page.headings[-1] == "What is missing"
    assert "has no attempts.jsonl" in page.text
    assert "state.json was altered" in page.text
    assert "Results" in page.headings


def test_a_checkpoint_that_is_removed_meanwhile_is_left_out(copied, monkeypatch):
    states, problems = facts.CheckpointStore(copied / "checkpoints").states()
    (state,) = states.values()
    removed = copied / "checkpoints/0001-00000003"
    monkeypatch.setattr(facts.CheckpointStore, "states", lambda _: (states | {removed: state}, problems))
    assert [kept.folder for kept in facts.RunFacts.of(copied).checkpoints] == list(states)


def test_a_run_without_a_log_has_a_page(report, copied):
    (copied / "metrics.jsonl").unlink()
    page = Page(report(copied))
    assert "metrics.jsonl does not exist" in page.text
    assert page.value("steps") == ["6 of 6 steps"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "attempts.jsonl"])
def test_a_pipe_in_place_of_a_file_is_named_and_never_waited_for(report, copied, name):
    (copied / name).unlink()
    os.mkfifo(copied / name)
    assert f"{name} cannot be read: it is a pipe" in Page(report(copied)).text


@pytest.mark.parametrize("number", [-1e99, -1, 0, 0.5, 1e99, None, True])
def test_a_log_of_numbers_that_no_run_writes_has_a_page(report, copied, number):
    entries = [dict.fromkeys(entry, number) | {"step": entry["step"]} for entry in entries_of(copied)]
    waits = {"slowest_rank": number, "slowest_rank_share": number, "communication_wait": number, "probe/a": number}
    lines = [{**entry, **waits} for entry in entries]
    (copied / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert Page(report(copied)).value("steps") == ["6 of 6 steps"]


def test_waits_are_shown_by_step_and_the_slowest_rank_by_its_host(report, copied):
    start, end = (copied / "attempts.jsonl").read_text().splitlines()
    noted = json.dumps({**json.loads(start), "hosts": ["node1", "node<2>"]})
    (copied / "attempts.jsonl").write_text(f"{noted}\n{end}\n")
    waits = {"communication_wait": 0.2, "communication_wait_max": 0.4, "slowest_rank": 1, "slowest_rank_share": 0.75}
    lines = [{**entry, **waits} if "mlm_loss" in entry else entry for entry in entries_of(copied)]
    (copied / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    text = report(copied)
    page = Page(text)
    assert page.value("1")[:5] == ["node<2>", "3 of 3", "15.0%", "15.0%"]
    assert page.value("waits in collectives, longest of a rank") == ["40.0%"]
    assert re.findall(r'title="(steps [^"]*: 40.0%)"', text) == [
        f"steps {first} to {last}: 40.0%" for first, last in ((1, 2), (3, 4), (5, 6))
    ]


def test_a_page_goes_to_the_folder_of_a_single_run_and_never_over_a_folder(lucid, copied, tmp_path, monkeypatch):
    monkeypatch.setattr(lucid_page, "panels_of", lambda runs: [])
    assert lucid("report", copied)[:2] == (0, f"{copied / 'report.html'}\n")
    code, _, errors = lucid("report", copied, "--output", tmp_path)
    assert (code, errors) == (
        2,
        f"lucid: {tmp_path} is a folder: give the name of a file, such as {tmp_path}/report.html\n",
    )


@pytest.mark.long
@pytest.mark.skipif(browser() is None, reason="Chromium is not installed: apt-get install chromium")
def test_a_browser_shows_the_page_at_the_width_of_a_phone_and_at_night(report, run_folder, copied, tmp_path):
    page = report(run_folder, copied, curves=True)
    by_day = look(page, 390, tmp_path)
    assert by_day.needed <= by_day.width == 390
    assert by_day.pictures == page.count("<svg")
    assert not by_day.messages
    by_night = look(page, 1200, tmp_path, dark=True)
    assert by_night.needed <= by_night.width
    assert by_night.paper != by_day.paper
