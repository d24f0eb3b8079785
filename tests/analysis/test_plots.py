"""Plots of runs: what the curves are of, and what is said about them."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from made_up_runs import evaluation, line, run

from lucid.analysis.plots import Panel, View, figure_of, inline_svg, panels_of, plot_runs
from lucid.errors import ConfigError

pytest.importorskip("matplotlib")

LOSS = Panel("MLM loss", "mlm_loss", "held_out_mlm_loss")


def curves(runs, by="steps", smooth=None, panels=(LOSS,)):
    """The points of the curves in the first panel, without marks."""
    axes = figure_of(View.of(runs, by, smooth), panels, columns=1).axes[0]
    return [np.transpose(curve.get_data()).tolist() for curve in axes.lines if curve.get_linestyle() == "-"]


def test_a_run_is_drawn_as_its_log_has_it():
    one = run([line(10), evaluation(10, 7.5), line(20), evaluation(20, 6.5), line(30, mlm_loss=None)])
    assert curves([one])[:2] == [[[10, 7], [20, 6]], [[10, 7.5], [20, 6.5]]]


def test_runs_are_compared_by_tokens_and_by_hours():
    fast, slow = run([line(10), line(20)], "fast"), run([line(10, speed=16.0), line(20, speed=16.0)], "slow")
    assert curves([fast, slow], "tokens") == [[[3200, 7], [6400, 6]]] * 2
    (_, at_end), (_, later) = curves([fast, slow], "hours")
    assert np.allclose([at_end, later], [[20 / 3600, 6], [40 / 3600, 6]])


def test_runs_are_drawn_by_steps_if_a_log_does_not_know_tokens():
    old = run([{"step": 10, "mlm_loss": 7.0}], "old")
    view = View.of([run([line(10)]), old], "tokens")
    assert view.by == "steps"
    assert re.match("drawn by steps, not by tokens: the log of old does not have them", view.remarks[0])
    assert View.of([run([line(10)])], "tokens").remarks == ()


def test_a_smoothed_curve_is_the_mean_of_lines_around_each_and_says_so():
    one = run([line(step, mlm_loss=value) for step, value in enumerate((1.0, 4.0, 7.0, 1.0), 1)])
    raw, smoothed = curves([one], smooth=3)
    assert [value for _, value in raw] == [1, 4, 7, 1]
    assert [value for _, value in smoothed] == [2.5, 4, 4, 4]
    assert View.of([one], smooth=3).remarks == ("training: means of 3 lines of the log; faint: single lines",)
    assert View.of([one]).smooth == 1
    assert View.of([run([line(step) for step in range(1, 1001)])]).smooth == 5


def test_a_long_curve_keeps_its_extremes():
    values = np.zeros(50_000)
    values[[7, 31_234]] = 9.0, -9.0
    one = run([{"step": step, "mlm_loss": value} for step, value in enumerate(values, 1)])
    (curve,) = curves([one], smooth=1)
    assert len(curve) <= 2000
    assert {(8, 9), (31_235, -9)} <= {(step, value) for step, value in curve}
    assert curve == sorted(curve, key=lambda point: point[0])


def test_restarts_and_skipped_steps_are_marked_where_they_were():
    one = run([line(10), line(20, attempt=2), line(30, attempt=2, skipped_steps=1)])
    view = View.of([one], "tokens")
    marks = [curve for curve in figure_of(view, [LOSS]).axes[0].lines if curve.get_linestyle() == "None"]
    assert [mark.get_xdata().tolist() for mark in marks] == [[3200], [9600]]
    assert [remark.partition(":")[0] for remark in view.remarks] == ["triangles", "crosses"]


def test_what_most_runs_share_is_not_in_the_legend():
    rates = 0.001, 0.001, 0.002
    runs = [
        run([line(10)], name, settings={"optimizer": {"learning_rate": rate}})
        for name, rate in zip("abc", rates, strict=True)
    ]
    assert View.of(runs).labels == ["a", "b", "c: optimizer.learning_rate=0.002"]


CHOICES = ((0.001, True), (0.002, False))


def test_the_legend_of_several_runs_has_the_settings_that_differ():
    settings = [{"optimizer": {"learning_rate": rate}, "data": {"nsp": nsp, "path": "c"}} for rate, nsp in CHOICES]
    runs = [run([line(10)], name, settings=each) for name, each in zip(("a", "b$x"), settings, strict=True)]
    figure = figure_of(View.of(runs))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == [
        "a: data.nsp=true, optimizer.learning_rate=0.001",
        r"b\$x: data.nsp=false, optimizer.learning_rate=0.002",
    ]


def test_a_run_whose_masks_differ_is_named():
    settings = [{"data": {"path": "c", "mlm_probability": rate}} for rate in (0.15, 0.3, 0.3)]
    entries = [line(10), evaluation(10, 7.0)]
    runs = [run(entries, name, settings=each) for name, each in zip("abc", settings, strict=True)]
    assert View.of(runs).remarks == (
        "b, c: training masks 30% of the tokens, evaluation 15%; so the two losses do not compare",
    )
    assert View.of([run([line(10)], settings=settings[1])]).remarks == ()  # nothing was evaluated


def test_panels_are_those_with_values_and_several_runs_get_one_for_each_corpus_and_probe():
    entries = [line(10), evaluation(10, 7.0, "/news"), {"step": 10, "probe/topics": 0.5}]
    titles = [panel.title for panel in panels_of([run(entries)])]
    assert titles == ["MLM loss (nats)", "sequences/s", "probe: topics"]
    titles = [panel.title for panel in panels_of([run(entries), run([line(10)])])]
    assert titles == ["MLM loss (nats)", "sequences/s", "held-out MLM loss (news)", "probe: topics"]
    assert panels_of([run([])]) == []


def test_an_inline_svg_is_whole_and_shares_no_id_with_another():
    one = run([line(10), evaluation(10, 7.0), line(20)], "a<&b")
    texts = [inline_svg(figure_of(View.of([one])), name) for name in ("first", "second")]
    page = ElementTree.fromstring(f'<div xmlns:xlink="http://www.w3.org/1999/xlink">{"".join(texts)}</div>')
    ids = [element.get("id") for element in page.iter() if element.get("id")]
    assert ids
    assert len(ids) == len(set(ids))
    assert "a<&b" in {element.text for element in page.iter()}
    assert texts[0] == inline_svg(figure_of(View.of([one])), "first")


def test_several_runs_are_drawn_into_a_file(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "mlm_loss": 7.0}\n')
    view = plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "both.svg")
    assert view.by == "steps"
    assert (tmp_path / "both.svg").read_text().count("<svg") == 1
    with pytest.raises(ConfigError, match="could not be drawn"):
        plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "both.xyz")
