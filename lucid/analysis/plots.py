"""Plots of runs, one or several: losses, accuracies, learning rate, norms and speed, from their logs.

A `View` says which runs are drawn and how, a `Panel` what of them. `figure_of` draws panels, and `picture_of` and
`inline_svg` turn the figure into bytes or text.
"""

import io
import json
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lucid.analysis.logged_run import LoggedRun, Progress, differing_settings, names_of
from lucid.backend import Array
from lucid.errors import ConfigError, DataError
from lucid.files import written_aside
from lucid.training.log.metrics import METRICS_FILE


@dataclass(frozen=True)
class Panel:
    """A panel: keys of training lines and of evaluations, or None; `smoothed` if single lines are noisy."""

    title: str
    training: str | None
    held_out: str | None = None
    smoothed: bool = True


_PANELS = (
    Panel("MLM loss (nats)", "mlm_loss", "held_out_mlm_loss"),
    Panel("NSP loss (nats)", "nsp_loss", "held_out_nsp_loss"),
    Panel("MLM accuracy", "mlm_accuracy", "held_out_mlm_accuracy"),
    Panel("NSP accuracy", "nsp_accuracy", "held_out_nsp_accuracy"),
    Panel("learning rate", "learning_rate", smoothed=False),
    Panel("gradient norm, before clipping", "gradient_norm"),
    Panel("sequences/s", "sequences_per_second"),
    Panel("model FLOP/s", "model_flops_per_second"),
)
_AXES: dict[Progress, str] = {"steps": "step", "tokens": "tokens, without padding", "hours": "hours of training"}
# Of the curves: by run, or of one run by what they are of.
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#bcbd22", "#7f7f7f")
# Lines of the log up to which no curve is smoothed; a curve of more gets about so many independent points.
_SMOOTH_FROM = 200
# Points of a curve, beyond which extremes alone are drawn, and up to which each has a dot.
_MOST_POINTS, _MOST_DOTS = 2000, 100
# Panels for corpora of several runs.
_MOST_CORPORA = 24
# Inches: the width of a panel, its height, and a line of text.
_WIDTH, _HEIGHT, _LINE = 5, 2.9, 0.18
_LONGEST_NAME = 60
# Of a run, in the legend.
_MOST_SETTINGS = 5


@dataclass(frozen=True)
class View:
    """Runs, and how their curves are drawn: by what progress, and as means of how many lines of the log.

    `remarks` are sentences that belong to each picture: on what cannot be compared, and how curves are made.
    """

    runs: tuple[LoggedRun, ...]
    by: Progress
    smooth: int
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, runs: Sequence[LoggedRun], by: Progress = "steps", smooth: int | None = None) -> "View":
        """Return a view of the runs. It is by steps if one of the logs does not know tokens or hours.

        Without `smooth`, the longest log decides.
        """
        remarks = []
        unknowing = [str(run.folder) for run in runs if not run.knows(by)]
        if unknowing:
            remarks.append(
                f"drawn by steps, not by {by}: the log of {_shortened(unknowing[0])} does not have them in all lines, "
                "because an earlier version of lucid began the run"
            )
        longest = max(len(run.training) for run in runs)
        lines = smooth or max(1, longest // _SMOOTH_FROM)
        if lines > 1:
            remarks.append(f"training: means of {lines} lines of the log; faint: single lines")
        masking: dict[str, list[str]] = {}
        for run, name in zip(runs, names_of(runs), strict=True):
            if run.masking and run.keys("held_out_mlm_loss"):
                masking.setdefault(run.masking, []).append(_shortened(name))
        for sentence, names in masking.items():
            of_runs = f"{', '.join(names)}: " if len(runs) > 1 else ""
            remarks.append(f"{of_runs}{sentence}; so the two losses do not compare")
        if any(run.restarts for run in runs):
            remarks.append("triangles: restarts")
        if any(run.skips for run in runs):
            remarks.append("crosses: steps were skipped, because gradients were not finite")
        return cls(tuple(runs), "steps" if unknowing else by, lines, tuple(remarks))

    @property
    def labels(self) -> list[str]:
        """The label of each run: its name, and the settings in which it differs from others, unless most have them."""
        differing, labels = differing_settings(self.runs), []
        for name, settings in zip(names_of(self.runs), differing, strict=True):
            shown = [
                f"{key}={_shortened(_value(value))}"
                for key, value in settings.items()
                if 2 * sum(other.get(key) == value for other in differing) <= len(self.runs)
            ]
            more = [f"and {len(shown) - _MOST_SETTINGS} more"] if len(shown) > _MOST_SETTINGS else []
            named = ", ".join(shown[:_MOST_SETTINGS] + more)
            labels.append(f"{_shortened(name)}: {named}" if shown else _shortened(name))
        return labels


def panels_of(runs: Sequence[LoggedRun]) -> list[Panel]:
    """Return the panels for which one of the runs has values. Of several runs, each corpus has a panel of its own."""
    keys = {key for run in runs for key in run.keys("") if len(run.points(key)[0])}
    panels = [panel for panel in _PANELS if panel.training in keys or panel.held_out in keys]
    if len(runs) > 1:
        corpora = sorted(key for key in keys if key.startswith("held_out_mlm_loss/"))[:_MOST_CORPORA]
        panels += [Panel(f"held-out MLM loss ({key.partition('/')[2]})", None, key) for key in corpora]
    panels += [Panel(f"probe: {key.removeprefix('probe/')}", None, key) for key in sorted(keys) if "probe/" in key[:6]]
    return panels


def figure_of(view: View, panels: Sequence[Panel] | None = None, columns: int = 2, framed: bool = True) -> Any:
    """Return a matplotlib `Figure` of the panels, by default all; `framed` by a title, a legend and the remarks.

    Raises `ConfigError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed: pip install matplotlib") from error
    panels = panels_of(view.runs) if panels is None else panels
    rows, is_one = -(-len(panels) // columns), len(view.runs) == 1
    width = _WIDTH * columns
    remarks = [line for text in view.remarks for line in textwrap.wrap(text, 72 * columns)] if framed else []
    top = 0.3 + (0.45 if is_one else 0.2 + _LINE * (len(view.runs) + 1)) * framed
    bottom = 0.5 + _LINE * len(remarks)
    height = _HEIGHT * rows - 0.4 + top + bottom
    figure = Figure(figsize=(width, height))
    # Fixed margins: an automatic layout would double the time.
    figure.subplots_adjust(
        left=0.7 / width, right=1 - 0.2 / width, bottom=bottom / height, top=1 - top / height, wspace=0.17, hspace=0.2
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, view, panel)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.set_xlabel(_AXES[view.by], fontsize=9)
        axes.tick_params(labelbottom=True)
    if framed:
        _frame(figure, view, remarks, height)
    return figure


def _frame(figure: Any, view: View, remarks: Sequence[str], height: float) -> None:
    """Put what the curves are above the panels, and the remarks below."""
    if len(view.runs) == 1:
        figure.suptitle(_shortened(str(view.runs[0].folder)), y=1 - 0.15 / height, va="top", parse_math=False)
    else:
        from matplotlib.lines import Line2D

        curves = [Line2D([], [], color=_color(number), linewidth=2) for number in range(len(view.runs))]
        kinds = [Line2D([], [], color="gray", linewidth=0.8), Line2D([], [], color="gray", marker="o", markersize=3)]
        labels = [*map(_as_text, view.labels), "training", "held out"]
        corner = 0.5 / figure.get_figwidth(), 1 - 0.05 / height
        figure.legend([*curves, *kinds], labels, loc="upper left", bbox_to_anchor=corner, fontsize=8, frameon=False)
    for number, line in enumerate(reversed(remarks)):
        figure.text(0.7 / figure.get_figwidth(), (0.08 + _LINE * number) / height, line, fontsize=8, parse_math=False)


def _draw_panel(axes: Any, view: View, panel: Panel) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    is_one = len(view.runs) == 1
    for number, run in enumerate(view.runs):
        color = _color(number)
        if panel.training is not None:
            _draw_training(axes, view, run, panel, color)
        if panel.held_out is not None:
            _draw_curve(axes, view, run, panel.held_out, "held out", _color(1) if is_one else color, "o", 1.5)
        _draw_marks(axes, view, run, color)
    if is_one and panel.held_out is not None:
        for number, key in enumerate(view.runs[0].keys(f"{panel.held_out}/"), 2):
            label = f"held out ({_shortened(key.partition('/')[2])})"
            _draw_curve(axes, view, view.runs[0], key, label, _color(number), "o", 1)
    if panel.training == "mlm_loss":
        _draw_counts(axes, view.runs)
    # A given height: to find one would take a fifth of the time.
    axes.set_title(_as_text(_shortened(panel.title)), fontsize=10, y=1.0)
    axes.tick_params(labelsize=8)
    for axis, largest in ((axes.xaxis, axes.dataLim.xmax), (axes.yaxis, axes.dataLim.ymax)):
        axis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
        if largest >= 1e5:
            axis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    # Several runs have one legend above all panels; a single curve needs none.
    labelled = zip(*axes.get_legend_handles_labels(), strict=True)
    handles = [handle for handle, label in labelled if is_one or label.startswith("by ")]
    if len(handles) > is_one:
        axes.legend(handles=handles, fontsize=8)


def _draw_training(axes: Any, view: View, run: LoggedRun, panel: Panel, color: str) -> None:
    steps, values = run.points(panel.training or "")
    if view.smooth == 1 or not panel.smoothed:
        _draw_curve(axes, view, run, panel.training or "", "training", color, ".", 0.8)
    elif len(steps):
        axes.plot(*_extremes(run.at(view.by, steps), values), color=color, linewidth=0.7, alpha=0.4)
        axes.plot(*_extremes(run.at(view.by, steps), _smoothed(values, view.smooth)), color=color, label="training")


def _draw_curve(
    axes: Any, view: View, run: LoggedRun, key: str, label: str, color: str, marker: str, width: float
) -> None:
    steps, values = run.points(key)
    if len(steps):
        marker = marker if len(steps) <= _MOST_DOTS else ""
        points = _extremes(run.at(view.by, steps), values)
        axes.plot(*points, color=color, marker=marker, markersize=3, linewidth=width, label=_as_text(label))


def _draw_marks(axes: Any, view: View, run: LoggedRun, color: str) -> None:
    """Mark restarts and skipped steps at the foot of the panel."""
    for steps, marker, size in ((run.restarts, "^", 5), (run.skips, "x", 4)):
        if steps:
            places = run.at(view.by, steps)
            at_foot = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(places, np.full(len(places), 0.02), marker, color=color, markersize=size, **at_foot)


def _draw_counts(axes: Any, runs: Sequence[LoggedRun]) -> None:
    """Draw the losses that counts of tokens attain, of all training corpora, if the runs agree on them."""
    for key, label, style in (
        ("held_out_frequency_loss", "by token frequency", "--"),
        ("held_out_bigram_loss", "by bigrams", ":"),
    ):
        found = [values[-1] for run in runs if len(values := run.points(key)[1])]
        if found and max(found) - min(found) < 0.01:
            axes.axhline(found[-1], color="gray", linestyle=style, label=label)


def _smoothed(values: Array, lines: int) -> Array:
    """Return the mean of the `lines` values around each, of fewer at both ends."""
    ends = np.arange(len(values)) + lines // 2 + 1
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first, last = np.maximum(0, ends - lines), np.minimum(len(values), ends)
    return (sums[last] - sums[first]) / (last - first)


def _extremes(places: Array, values: Array) -> tuple[Array, Array]:
    """Return the points of a curve; of a long one the least and the largest value of each piece, in their order."""
    if len(values) <= _MOST_POINTS:
        return places, values
    pieces = np.array_split(np.arange(len(values)), _MOST_POINTS // 2)
    chosen = [sorted({piece[values[piece].argmin()], piece[values[piece].argmax()]}) for piece in pieces]
    index = np.concatenate(chosen)
    return places[index], values[index]


def _value(value: Any) -> str:
    """Return a setting as users write it."""
    return value if isinstance(value, str) else json.dumps(value)


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]


def _shortened(name: str) -> str:
    half = _LONGEST_NAME // 2 - 1
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half:]}"


def _as_text(label: str) -> str:
    """Return a label that matplotlib takes for no formula, and draws on one line."""
    return " ".join(label.split("\n")).replace("$", r"\$")


def picture_of(figure: Any, kind: str) -> bytes:
    """Return a figure as the content of a file of some kind: png, svg or pdf. Raises `ValueError` for another one."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # Matplotlib's font lacks many scripts that the names of folders may have; it draws boxes instead.
        warnings.filterwarnings("ignore", r"Glyph .* missing|Matplotlib currently does not support", UserWarning)
        figure.savefig(picture, dpi=120, format=kind)
    return picture.getvalue()


def inline_svg(figure: Any, name: str) -> str:
    """Return a figure as an `<svg>` element for a page. `name` is for its ids, and no other figure there has it.

    Letters remain text in the page's own font; the background is the page's.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "savefig.transparent": True}):
        text = picture_of(figure, "svg").decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    referenced = set(re.findall(r'(?:#|url\(#)([^")]+)', text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", text)


def plot_runs(folders: Sequence[Path], output: Path, by: Progress = "steps", smooth: int | None = None) -> View:
    """Draw the runs in the folders to the PNG (or PDF, SVG) file `output`. Return what was drawn."""
    if not output.suffix or output.is_dir():
        raise ConfigError(f"{output}: the name must end in .png, .pdf or .svg")
    runs = [LoggedRun.of(folder) for folder in folders]
    for run in runs:
        if not panels_of([run]):
            raise DataError(f"{run.folder / METRICS_FILE} has no losses yet: train some steps first")
    view = View.of(runs, by, smooth)
    figure = figure_of(view)
    try:
        picture = picture_of(figure, output.suffix.removeprefix("."))
    except ValueError as error:
        raise ConfigError(f"{output} could not be drawn: {error}") from error
    with written_aside(output, ConfigError) as file:
        file.write(picture)
    return view
