"""A report of runs as one HTML page: no scripts, nothing from elsewhere, readable on paper, at night and on a phone."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from lucid.analysis.logged_run import names_of
from lucid.analysis.plots import COLORS, View, figure_of, inline_svg, panels_of
from lucid.analysis.report.facts import RunFacts
from lucid.analysis.report.facts_in_words import extent, machine, results, speed, summary
from lucid.analysis.report.markup import element, listed, paragraph, table_of, text
from lucid.analysis.report.settings import changed_table, default_table, differing_table
from lucid.analysis.report.tables import attempts_table, checkpoints_table, corpora_table, moment, side_by_side
from lucid.analysis.report.waits import WaitsMap, slowest_table, waits_map
from lucid.version import __version__

_STYLE = Path(__file__).with_name("page.css")
# The map of waits has its strongest colour at the largest wait, but not below this one: less is never worth a look.
_LEAST_STRONG = 0.25

Names: TypeAlias = Sequence[str]
Runs: TypeAlias = Sequence[RunFacts]


def page_of(runs: Runs) -> str:
    """Return the report of runs, one or several side by side. Raises `ConfigError` if matplotlib is not installed."""
    names = names_of([run.logged for run in runs])
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs: {', '.join(names)}"
    sections: tuple[tuple[str, Callable[[Names, Runs], Iterator[str]]], ...] = (
        ("What the curves say", lambda names, runs: _of_each(names, runs, _findings)),
        ("Results", _results),
        ("Curves", _curves),
        ("Training", lambda names, runs: _facts(names, [extent(run) for run in runs])),
        ("Speed and waits", _speed),
        ("Attempts", lambda names, runs: _of_each(names, runs, lambda run: table_of(attempts_table(run)))),
        ("Checkpoints", lambda names, runs: _of_each(names, runs, _checkpoints)),
        ("Corpora", _corpora),
        ("Machine and software", lambda names, runs: _facts(names, [machine(run) for run in runs])),
        ("Settings", _settings),
        ("What is missing", lambda names, runs: _of_each(names, runs, _missing)),
    )
    body = [element("h1", text(title)), *_of_each(names, runs, lambda run: map(paragraph, summary(run)))]
    for heading, content in sections:
        if parts := list(content(names, runs)):
            body.append(element("section", element("h2", heading), *parts))
    body.append(element("footer", f"Written by lucid {__version__} on {moment(time.time())}."))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{element('title', text(title))}\n<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _of_each(names: Names, runs: Runs, content: Callable[[RunFacts], Iterator[str]]) -> Iterator[str]:
    """Yield the content for each run that has some, below its name if there are several runs."""
    for name, run in zip(names, runs, strict=True):
        if parts := list(content(run)):
            yield from ([element("h3", text(name))] if len(runs) > 1 else []) + parts


def _facts(names: Names, facts: Sequence[dict[str, str]]) -> Iterator[str]:
    return table_of(side_by_side(names, facts), "facts")


def _findings(run: RunFacts) -> Iterator[str]:
    if not run.logged.entries:
        return
    if not any(finding.is_alarm for finding in run.findings):
        yield paragraph("Nothing looks wrong.")
    items = [
        element("li", element("b", "Warning: "), text(str(finding)), kind="alarm")
        if finding.is_alarm
        else element("li", text(str(finding)))
        for finding in run.findings
    ]
    if items:
        yield element("ul", *items)


def _results(names: Names, runs: Runs) -> Iterator[str]:
    yield from _facts(names, [results(run) for run in runs])
    if any(run.last("held_out_frequency_loss") is not None for run in runs):
        yield paragraph(
            "Losses are in nats. The loss by token frequency is that of a model which knows only how often each token "
            "occurs in the training text; the loss by bigrams that of one which also knows the two tokens around each.",
            "quiet",
        )


def _curves(names: Names, runs: Runs) -> Iterator[str]:
    logged = [run.logged for run in runs]
    panels = panels_of(logged)
    if not panels:
        return
    view = View.of(logged)
    if len(runs) > 1:
        lines = [
            element("li", element("span", style=f"background:{COLORS[number % len(COLORS)]}"), text(label))
            for number, label in enumerate(view.labels)
        ]
        yield element("ul", *lines, kind="legend")
    figures = []
    for number, panel in enumerate(panels):
        figure = figure_of(view, [panel], columns=1, framed=False)
        figure.axes[0].set_title("")
        svg = inline_svg(figure, f"curve-{number}")
        svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)")
        figures.append(element("figure", element("figcaption", text(panel.title)), svg))
    yield element("div", *figures, kind="curves")
    yield from (paragraph(f"{remark[0].upper()}{remark[1:]}.", "quiet") for remark in view.remarks)


def _speed(names: Names, runs: Runs) -> Iterator[str]:
    if table := list(_facts(names, [speed(run) for run in runs])):
        yield from table
        yield paragraph("Medians over the lines of the log of the last attempt.", "quiet")
    yield from _of_each(names, runs, _waits)


def _waits(run: RunFacts) -> Iterator[str]:
    if (found := waits_map(run)) is not None:
        yield _heat(found)
    yield from table_of(slowest_table(run))


def _heat(found: WaitsMap) -> str:
    strongest = max(_LEAST_STRONG, found.largest)
    starts = (0, *found.steps)
    rows = []
    for label, values in found.rows.items():
        cells = [
            element("td", kind="none")
            if value is None
            else element(
                "td", style=f"--part:{value / strongest:.0%}", title=f"steps {start + 1:,} to {stop:,}: {value:.1%}"
            )
            for start, stop, value in zip(starts, found.steps, values, strict=False)
        ]
        rows.append(element("tr", element("th", text(label), scope="row"), *cells))
    caption = (
        f"Waits over the steps, 1 to {found.steps[-1]:,}, as fractions of the time: from none (pale) to "
        f"{strongest:.0%} (strong)."
    )
    return element("table", element("caption", caption), element("tbody", *rows), kind="map")


def _checkpoints(run: RunFacts) -> Iterator[str]:
    return table_of(checkpoints_table(run)) if run.checkpoints else iter([paragraph("There is none.")])


def _corpora(names: Names, runs: Runs) -> Iterator[str]:
    alike = all(run.corpora == runs[0].corpora for run in runs)
    which = runs[:1] if alike else runs
    yield from _of_each(names[: len(which)], which, lambda run: table_of(corpora_table(run.corpora), "facts"))


def _settings(names: Names, runs: Runs) -> Iterator[str]:
    configs = [run.config for run in runs if run.config is not None]
    if not configs:
        return
    several = len(runs) > 1
    if several:
        yield element("h3", "That differ between the runs")
        yield from table_of(differing_table(names, runs), "facts")
    yield element("h3", "That differ from the defaults", ", alike in all runs" * several)
    yield from table_of(changed_table(configs))
    summary = element("summary", "Settings that are defaults", " in all runs" * several)
    yield element("details", summary, *table_of(default_table(configs)))


def _missing(run: RunFacts) -> Iterator[str]:
    if run.remarks:
        yield listed(list(run.remarks))
