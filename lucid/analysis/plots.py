"""Plots losses, accuracies and speed of a run over its steps, from its metrics file."""

import io
import warnings
from pathlib import Path
from typing import Any

from lucid.errors import ConfigError, DataError
from lucid.files import written_aside
from lucid.training.metrics import METRICS_FILE, log_of

# (key in training lines, key in evaluation lines or None, title)
_PANELS = (
    ("mlm_loss", "held_out_mlm_loss", "MLM loss (nats)"),
    ("nsp_loss", "held_out_nsp_loss", "NSP loss (nats)"),
    ("mlm_accuracy", "held_out_mlm_accuracy", "MLM accuracy"),
    ("nsp_accuracy", "held_out_nsp_accuracy", "NSP accuracy"),
    ("sequences_per_second", None, "sequences/s"),
    ("model_flops_per_second", None, "model FLOP/s"),
)
# Width of the figure and height of a row of panels, in inches.
_WIDTH, _HEIGHT = 10, 3.5


def plot_run(run_folder: Path, output: Path) -> None:
    """Draw the metrics of the run in `run_folder` to the PNG (or PDF, SVG) file `output`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib, which is not installed: pip install matplotlib") from error
    if not output.suffix or output.is_dir():
        raise ConfigError(f"{output}: the name must end in .png, .pdf or .svg")
    lines = log_of(run_folder)
    panels = [panel for panel in _PANELS if any(line.get(panel[0]) is not None for line in lines)]
    if not panels:
        raise DataError(f"{run_folder / METRICS_FILE} has no losses yet: train some steps first")
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows))
    # Fixed margins, in inches: an automatic layout would double the time.
    figure.subplots_adjust(
        left=0.7 / _WIDTH, right=1 - 0.2 / _WIDTH, bottom=0.6 / (_HEIGHT * rows), top=1 - 0.8 / (_HEIGHT * rows),
        wspace=0.15, hspace=0.4,
    )  # fmt: skip
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, (training, held_out, title) in zip(grid.flat, panels, strict=False):
        _draw(axes, lines, training, "training", ".", 0.8)
        if held_out is not None:
            _draw(axes, lines, held_out, "held out", "o", 1.5)
            for key in sorted({key for line in lines for key in line if key.startswith(f"{held_out}/")}):
                corpus = key.partition("/")[2].replace("$", r"\$")  # no formula
                _draw(axes, lines, key, f"held out ({corpus})", "o", 1)
        if training == "mlm_loss":
            _draw_counts(axes, lines)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(str(run_folder), parse_math=False)
    picture = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # Matplotlib's font lacks many scripts that the names of folders may have; it draws boxes instead.
            warnings.filterwarnings("ignore", r"Glyph .* missing|Matplotlib currently does not support", UserWarning)
            figure.savefig(picture, dpi=120, format=output.suffix.removeprefix("."))
    except ValueError as error:
        raise ConfigError(f"{output} could not be drawn: {error}") from error
    with written_aside(output, ConfigError) as file:
        file.write(picture.getbuffer())


def _draw(axes: Any, lines: list[dict[str, Any]], key: str, label: str, marker: str, width: float) -> None:
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    if points:
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker=marker, markersize=3, linewidth=width, label=label)


def _draw_counts(axes: Any, lines: list[dict[str, Any]]) -> None:
    """Draw the losses that counts of tokens attain, of all training corpora."""
    for key, label, style in (
        ("held_out_frequency_loss", "by token frequency", "--"),
        ("held_out_bigram_loss", "by bigrams", ":"),
    ):
        if values := [line[key] for line in lines if line.get(key) is not None]:
            axes.axhline(values[-1], color="gray", linestyle=style, label=label)
