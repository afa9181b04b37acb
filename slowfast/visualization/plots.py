"""Figures of what a job did, as functions of plain values.

Only matplotlib's object-oriented interface is used: no pyplot, no global figure, no display. Every colour
that carries a meaning is named here once; a page that follows the reader's light or dark theme replaces
them by its own (see ``slowfast.visualization.page``).
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

INK = "#1b2230"
MUTED = "#6a7486"
GRID = "#e4e8ef"
TRAIN = "#3b6ef5"
VAL = "#ef6c1a"
GOOD = "#1c9a70"
BAD = "#d8465c"

# Runs beside each other: the first has the colour of training.
RUNS = (TRAIN, "#ef6c1a", "#1c9a70", "#a04bd0", "#d8465c", "#0f9fb5", "#b08a00", "#6a7486")

MAX_POINTS = 600  # of one curve: more would only make the file heavier
POINTS_PER_INCH = 72


@dataclass(frozen=True)
class Curve:
    """One line: ``y`` over ``x`` (epochs). A ``noisy`` curve is drawn faint, with its smoothed course on top.

    ``color`` goes before that of the role.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    role: Literal["train", "val"] = "train"
    noisy: bool = False
    dashed: bool = False
    color: str = ""


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its curves; ``limits`` clips the y axis."""

    title: str
    curves: Sequence[Curve]
    limits: tuple[float | None, float | None] = (None, None)


def smooth(values: Sequence[float], span: float) -> np.ndarray:
    """Exponential moving average over about ``span`` values, without the pull towards a starting value."""
    keep = 1.0 - 2.0 / (max(span, 1.0) + 1.0)
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total = keep * total + value
        weight = keep * weight + 1.0
        result.append(total / weight)
    return np.array(result)


def curves(panels: Sequence[Panel], *, width: float = 4.6, height: float = 3.0) -> Figure:
    """The panels side by side; ``width`` and ``height`` of one panel in inches."""
    figure = _figure(width * len(panels), height)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_panel(axes, panel)
    return figure


def curves_of_runs(panels: Sequence[Panel], *, columns: int = 3, width: float = 4.6, height: float = 3.0) -> Figure:
    """Panels in a grid, in which the curves whose label begins alike ("name", "name, validation") share a colour.

    One legend serves all; ``width`` and ``height`` of one panel in inches.
    """
    runs = list(dict.fromkeys(curve.label.split(",")[0] for panel in panels for curve in panel.curves))
    colors = {run: RUNS[index % len(RUNS)] for index, run in enumerate(runs)}
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    figure = _figure(width * columns, height * rows + 0.5)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    handles: dict[str, Artist] = {}
    for axes, panel in zip(grid, panels):
        colored = [replace(curve, color=colors[curve.label.split(",")[0]]) for curve in panel.curves]
        _draw_panel(axes, replace(panel, curves=colored), legend=False)
        handles |= dict(reversed(pair) for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.legend(
        handles.values(),
        [_shorten(label, 60) for label in handles],
        loc="outside upper left",
        ncols=min(len(handles), 4),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    return figure


def confusion_matrix(
    counts: np.ndarray,
    class_names: Sequence[str],
    *,
    shares: bool = False,
    size: tuple[float, float] = (8.0, 8.0),
    title: str = "",
) -> Figure:
    """How often a class (row) was taken for another (column); right answers blue, mistakes red.

    ``counts`` [K, K]: numbers of videos, of which percent per row are shown; or, with ``shares``, parts of the row
    in 0..1 (so that a cut-out of a larger matrix keeps its values). Names and numbers appear where a cell has room
    for them; otherwise the axes count class numbers. ``size`` in inches.
    """
    table = np.asarray(counts, dtype=float)
    if not shares:
        table = table / np.maximum(table.sum(axis=1, keepdims=True), 1.0)
    num_classes = len(table)
    figure = _figure(*size)
    axes = figure.subplots()
    cell = 0.72 * POINTS_PER_INCH * min(size) / max(num_classes, 1)  # about 72 % of the figure is left to the cells
    diagonal = np.eye(num_classes, dtype=bool)
    gamma = 0.6 if cell >= 7 else 0.35  # small cells must stand out more to be seen
    for mask, color in ((~diagonal, TRAIN), (diagonal, BAD)):
        layer = np.ma.masked_array(table, mask)
        axes.imshow(layer, cmap=_fade(color), norm=PowerNorm(gamma, 0.0, 1.0), interpolation="nearest", aspect="equal")
    _label_classes(axes, class_names, cell)
    if cell >= 13:
        for row, column in zip(*np.nonzero(table), strict=True):
            color = "white" if table[row, column] > 0.5 else INK
            text = f"{100 * table[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=min(10.0, 0.34 * cell))
    axes.set_xlabel("predicted class", color=MUTED)
    axes.set_ylabel("true class", color=MUTED)
    if cell >= 7:
        axes.set_xticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(num_classes + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=GRID, linewidth=0.6)
    axes.tick_params(which="both", length=0, colors=INK)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    _title(axes, title)
    return figure


def class_bars(
    class_names: Sequence[str],
    values: Sequence[float],
    *,
    label: str = "accuracy in percent",
    max_bars: int = 40,
    title: str = "",
) -> Figure:
    """One bar per class, the highest first. Beyond ``max_bars`` classes, the best and the worst of them."""
    order = sorted(range(len(values)), key=lambda index: (-values[index], index))
    hidden = max(0, len(order) - max_bars)
    if hidden:
        half = max_bars // 2
        order = [*order[:half], None, *order[-(max_bars - half) :]]
    heights = [0.0 if index is None else values[index] for index in order]
    names = [f"... {hidden} more ..." if index is None else _shorten(class_names[index], 34) for index in order]
    figure = _figure(6.4, 0.9 + 0.235 * len(order))
    axes = figure.subplots()
    axes.barh(range(len(order)), heights, color=TRAIN, height=0.66)
    for position, index in enumerate(order):
        if index is not None:
            axes.text(values[index] + 1, position, f"{values[index]:.0f}", va="center", color=MUTED, fontsize=8)
    axes.set_yticks(range(len(order)), names, fontsize=8.5)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 107)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(label, color=MUTED)
    _dress(axes, grid="x")
    axes.tick_params(axis="y", colors=INK)
    _title(axes, title)
    return figure


def topk_histogram(
    row: Sequence[float],
    class_names: Sequence[str],
    *,
    true_class: int,
    k: int = 10,
    size: tuple[float, float] = (8.0, 8.0),
) -> Figure:
    """The ``k`` answers most often given for videos of ``true_class``; ``row`` [K] holds counts or shares.

    Answers that were never given are left out.
    """
    values = np.asarray(row, dtype=float)
    values = values / max(values.sum(), 1e-12)
    order = [index for index in np.argsort(-values, kind="stable")[:k] if values[index] > 0]
    figure = _figure(*size)
    axes = figure.subplots()
    colors = [GOOD if index == true_class else BAD for index in order]
    axes.bar(range(len(order)), values[order], color=colors, width=0.7)
    for place, share in enumerate(values[order]):
        axes.text(place, share, f"{100 * share:.3g} %", ha="center", va="bottom", color=MUTED, fontsize=9)
    if not order:
        axes.text(0.5, 0.5, "no video of this class", ha="center", color=MUTED, transform=axes.transAxes)
    names = [_shorten(class_names[index], 24) for index in order]
    axes.set_xticks(range(len(order)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_xlim(-0.6, max(len(order), 4) - 0.4)  # a single bar is no wall
    axes.set_ylim(0, 1.04)
    axes.set_ylabel("share of the predictions", color=MUTED)
    _dress(axes, grid="y")
    axes.tick_params(axis="x", colors=INK)
    _title(axes, f"Predictions for {_shorten(class_names[true_class], 40)}")
    return figure


def prediction_strip(
    frames: Sequence[np.ndarray],
    predictions: Sequence[tuple[str, float, bool]],
    *,
    truth: str,
    caption: str = "",
) -> Figure:
    """Frames of one video in a row and, beside them, its best predictions.

    ``frames`` uint8 [H, W, 3] each. ``predictions``: name, share in 0..1, whether it is right (green) or not (red).
    """
    height, width = frames[0].shape[:2]
    tile = 1.5 * width / height
    figure = _figure(tile * len(frames) + 3.4, 1.95)
    axes = figure.subplots(1, len(frames) + 1, width_ratios=[tile] * len(frames) + [3.2])
    for picture, frame in zip(axes, frames, strict=False):
        picture.imshow(frame)
        picture.set_axis_off()
    prediction_bars(axes[-1], predictions)
    heading = f"{_shorten(truth, 60)}   {caption}" if caption else _shorten(truth, 60)
    figure.suptitle(heading, x=0.01, ha="left", color=INK, fontsize=10, fontweight="bold")
    return figure


def prediction_bars(bars: Axes, predictions: Sequence[tuple[str, float, bool | None]]) -> None:
    """Draw predictions into ``bars``: name, share in 0..1, whether it is right (green), not (red) or unknown (blue)."""
    for position, (name, share, right) in enumerate(predictions):
        color = TRAIN if right is None else GOOD if right else BAD
        bars.barh(position, 1.0, color=GRID, height=0.36)
        bars.barh(position, share, color=color, height=0.36)
        bars.text(0, position - 0.26, _shorten(name, 26), va="bottom", color=INK, fontsize=8.5)
        bars.text(1, position - 0.26, f"{100 * share:.0f} %", va="bottom", ha="right", color=MUTED, fontsize=8.5)
    bars.set_xlim(0, 1)
    bars.set_ylim(max(len(predictions), 3) - 0.6, -0.9)
    bars.set_axis_off()


@dataclass(frozen=True)
class BoxedFrame:
    """A frame (uint8 [H, W, 3]) and boxes as (x1, y1, x2, y2 in fractions, text): what was found and what is true."""

    frame: np.ndarray
    found: Sequence[tuple[Sequence[float], str]]
    true: Sequence[tuple[Sequence[float], str]]


def boxed_frames(
    frames: Sequence[BoxedFrame], captions: Sequence[str] = (), *, columns: int = 3, width: float = 3.6
) -> Figure:
    """Frames with their boxes: found ones blue with their text above, true ones dashed orange with theirs below.

    ``captions`` stand above the frames; ``width`` of one in inches.
    """
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    height, breadth = frames[0].frame.shape[:2]
    figure = _figure(width * columns, (width * height / breadth + 0.32) * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_axis_off()
    for index, (axes, boxed) in enumerate(zip(grid, frames)):
        _draw_boxes(axes, boxed)
        if captions:
            axes.set_title(_shorten(captions[index], 48), loc="left", color=INK, fontsize=8.5, pad=3)
    return figure


def _draw_boxes(axes: Axes, boxed: BoxedFrame) -> None:
    height, width = boxed.frame.shape[:2]
    axes.imshow(boxed.frame, extent=(0, 1, 1, 0), aspect=height / width)
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    for boxes, color, style, below in ((boxed.true, VAL, "--", True), (boxed.found, TRAIN, "-", False)):
        for (x1, y1, x2, y2), text in boxes:
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linestyle=style, linewidth=1.4)
            )
            side = "right" if x1 > 0.6 else "left"
            axes.text(
                *(x2 if side == "right" else x1, y2 if below else y1),
                text.replace("$", r"\$"),
                ha=side,
                va="top" if below else "bottom",
                color="white",
                fontsize=6.5,
                linespacing=1.15,
                clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "alpha": 0.75, "pad": 1.2},
            )


def to_png(figure: Figure, *, dpi: int = 110) -> bytes:
    """The figure as a PNG file on a white ground."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_svg(figure: Figure, prefix: str) -> str:
    """The figure as an ``<svg>`` element on a clear ground, with real text.

    ``prefix`` goes before every id, so that several figures can stand in one page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "slowfast"}):
        figure.savefig(buffer, format="svg", dpi=220, transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>", "", svg, flags=re.DOTALL)  # a style would leak out
    for start in ('id="', "url(#", 'href="#'):
        svg = svg.replace(start, start + prefix + "-")
    return re.sub(r'(<svg\b[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)


def axes_frame(figure: Figure) -> dict[str, object]:
    """Where the first axes lie in the drawn figure, as fractions from its top left corner, and their limits."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    box = axes.get_position()
    return {
        "left": round(box.x0, 5),
        "top": round(1.0 - box.y1, 5),
        "width": round(box.width, 5),
        "height": round(box.height, 5),
        "x": [round(float(limit), 5) for limit in axes.get_xlim()],
        "y": [round(float(limit), 5) for limit in axes.get_ylim()],
    }


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    return figure


def _draw_panel(axes: Axes, panel: Panel, *, legend: bool = True) -> None:
    for curve in panel.curves:
        color = curve.color or (TRAIN if curve.role == "train" else VAL)
        x, y = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
        course = smooth(y, len(y) / 25) if curve.noisy else y
        step = max(1, -(-len(x) // MAX_POINTS))
        if curve.noisy:
            axes.plot(x[::step], y[::step], color=color, alpha=0.25, linewidth=1.0)
        axes.plot(
            x[::step],
            course[::step],
            color=color,
            label=curve.label,
            linewidth=1.9,
            linestyle="--" if curve.dashed else "-",
            marker="o" if len(x) <= 40 and not curve.noisy else None,
            markersize=3.4,
        )
    bottom, top = axes.get_ylim()
    low, high = panel.limits
    axes.set_ylim(bottom if low is None else low, top if high is None else high)
    axes.set_xlabel("epoch", color=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    _dress(axes, grid="y")
    _title(axes, panel.title)
    if legend and len(panel.curves) > 1:
        axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="best", handlelength=1.6)


def _label_classes(axes: Axes, class_names: Sequence[str], cell: float) -> None:
    """Class names where a cell (in points) is high enough for them, else numbers at round steps."""
    count = len(class_names)
    if cell >= 7:
        fontsize = min(9.5, 0.68 * cell)
        names = [_shorten(name, 26) for name in class_names]
        axes.set_yticks(range(count), names, fontsize=fontsize)
        axes.set_xticks(range(count), names, fontsize=fontsize, rotation=90 if count > 12 else 45)
        if count <= 12:
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        return
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        axis.set_tick_params(labelsize=8.5)


def _dress(axes: Axes, *, grid: Literal["x", "y"]) -> None:
    axes.spines[["top", "right", "left" if grid == "y" else "bottom"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(GRID)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED, labelsize=8.5)


def _title(axes: Axes, text: str) -> None:
    if text:
        axes.set_title(text, loc="left", color=INK, fontsize=11, fontweight="bold", pad=10)


def _fade(color: str) -> LinearSegmentedColormap:
    """From clear to ``color``, so that the ground of the page shows through where there is nothing."""
    red, green, blue = to_rgb(color)
    return LinearSegmentedColormap.from_list("fade", [(red, green, blue, 0.0), (red, green, blue, 1.0)])


def _shorten(text: str, length: int) -> str:
    text = " ".join(str(text).split()).replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
