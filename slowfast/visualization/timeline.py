"""The classes of a video over time: as stretches with one class each, as a picture, and written on the frames."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from slowfast.visualization import plots
from slowfast.visualization.predictor import ClipPrediction, Guess
from slowfast.visualization.video_io import VideoWriter, all_frames

MAX_NAME = 28  # characters of a class name in a picture
MAX_CELLS = 2000  # columns of a picture: more would be thinner than its pixels
LEAST_SIDE = 240  # of frames that are written on, in pixels; smaller ones are enlarged


class Stretch(NamedTuple):
    """Neighbouring windows with the same best class, and the mean of its scores."""

    start_s: float
    end_s: float
    name: str
    index: int
    score: float


def moments(windows: Sequence[ClipPrediction]) -> list[float]:
    """Edges [W + 1] in seconds between the windows: halfway between their centres, so each has a time of its own."""
    centres = [(window.start_s + window.end_s) / 2 for window in windows]
    inner = [(before + after) / 2 for before, after in itertools.pairwise(centres)]
    return [windows[0].start_s, *inner, windows[-1].end_s]


def stretches(windows: Sequence[ClipPrediction]) -> list[Stretch]:
    """What happens when, by the best class of each window."""
    edges = moments(windows)
    found: list[Stretch] = []
    best = [window.top(1)[0] for window in windows]
    for _, group in itertools.groupby(range(len(windows)), key=lambda row: best[row].index):
        rows = list(group)
        score = float(np.mean([best[row].score for row in rows]))
        guess = best[rows[0]]
        found.append(Stretch(edges[rows[0]], edges[rows[-1] + 1], guess.name, guess.index, score))
    return found


# ---------------------------------------------------------------- a picture


def timeline_figure(windows: Sequence[ClipPrediction], *, top_k: int = 5, title: str = "") -> Figure:
    """The classes of a video over time: darker is a higher score, a dot marks where a class is the best.

    Shown are the ``top_k`` classes that are best most of the time, then those of the highest score.
    """
    edges = np.array(moments(windows))
    scores = np.stack([window.scores.numpy() for window in windows])  # [W, K]
    lengths = np.diff(edges)
    best = scores.argmax(1)
    led = np.bincount(best, weights=lengths, minlength=scores.shape[1])
    order = np.lexsort((-scores.max(0), -led))[:top_k]
    # From top to bottom in the order of their highest scores in time.
    order = sorted(order, key=lambda index: int(scores[:, index].argmax()))
    figure = plots.Figure(figsize=(9.0, 1.5 + 0.32 * len(order)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    shown_edges, shown = _thinned(edges, scores[:, order])
    shades = LinearSegmentedColormap.from_list("score", ["#ffffff", plots.TRAIN])
    top = max(1.0, float(shown.max()))
    mesh = axes.pcolormesh(shown_edges, np.arange(len(order) + 1), shown.T, cmap=shades, vmin=0.0, vmax=top)
    centres = (edges[:-1] + edges[1:]) / 2
    for row, index in enumerate(order):
        led_here = best == index
        axes.plot(centres[led_here], np.full(led_here.sum(), row + 0.5), ".", color=plots.BAD, markersize=4)
    names = [_short(windows[0].class_names[index]) for index in order]
    axes.set_yticks(np.arange(len(order)) + 0.5, names, fontsize=9, color=plots.INK)
    axes.invert_yaxis()
    axes.hlines(np.arange(1, len(order)), edges[0], edges[-1], color=plots.GRID, linewidth=0.8)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("seconds", color=plots.MUTED)
    axes.tick_params(length=0, labelcolor=plots.INK, labelsize=8.5)
    for spine in axes.spines.values():
        spine.set_color(plots.GRID)
    bar = figure.colorbar(mesh, ax=axes, pad=0.01, fraction=0.03)
    bar.set_label("score", color=plots.MUTED, fontsize=8.5)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=plots.MUTED)
    if title:
        axes.set_title(title.replace("$", r"\$"), loc="left", color=plots.INK, fontsize=11, fontweight="bold", pad=8)
    return figure


def _thinned(edges: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MAX_CELLS`` columns: of neighbours that share one, the highest value is shown."""
    if len(values) <= MAX_CELLS:
        return edges, values
    starts = np.unique(np.linspace(0, len(values), MAX_CELLS, endpoint=False).astype(int))
    return np.append(edges[starts], edges[-1]), np.maximum.reduceat(values, starts, axis=0)


def _short(name: str) -> str:
    name = name.replace("$", r"\$")
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1].rstrip() + "…"


# ---------------------------------------------------------------- on the frames


@dataclass(frozen=True)
class Look:
    """How scores are written on a frame."""

    top_k: int = 3
    least_score: float = 0.02  # classes below are not written
    color: tuple[int, int, int] = (120, 160, 255)


def readable(frame: np.ndarray) -> Image.Image:
    """``frame`` (RGB, uint8 [H, W, 3]), enlarged by a whole number where its short side is below ``LEAST_SIDE``."""
    grow = -(-LEAST_SIDE // min(frame.shape[:2]))
    picture = Image.fromarray(frame)
    if grow <= 1:
        return picture
    return picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.BICUBIC)


def write_scores(frame: np.ndarray, guesses: Sequence[Guess], time_s: float, look: Look | None = None) -> np.ndarray:
    """A copy of ``frame`` (RGB, uint8 [H, W, 3]) with the time, and the names and scores of classes, in a corner.

    A frame whose short side is below ``LEAST_SIDE`` is enlarged by a whole number first, so that text can be read.
    """
    look, picture = look or Look(), readable(frame)
    size = max(11, round(min(picture.size) / 20))
    font = ImageFont.load_default(size)
    lines = [(f"{time_s:.1f} s", None)]
    lines += [(f"{guess.name}  {guess.score:.2f}", guess.score) for guess in guesses if guess.score >= look.least_score]
    step, gap = round(size * 1.5), max(3, size // 3)
    width = min(round(max(font.getlength(text) for text, _ in lines)) + 4 * gap, picture.width)
    width = max(width, picture.width * 2 // 5)
    ground = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(ground)
    top = picture.height - step * len(lines) - gap
    pen.rectangle((0, top - gap, width, picture.height), fill=(10, 14, 24, 165))
    for row, (text, score) in enumerate(lines):
        y = top + row * step
        if score is not None:
            pen.rectangle((0, y, round(width * min(score, 1.0)), y + step - 3), fill=(*look.color, 110))
        pen.text((2 * gap, y), text, font=font, fill=(255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(picture.convert("RGBA"), ground).convert("RGB"))


def annotated_frames(
    path: str, windows: Sequence[ClipPrediction], *, fps: float, look: Look | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Time and picture of every frame of a video, with the scores of the window whose time it is."""
    look = look or Look()
    edges, row, written = moments(windows), 0, -1
    guesses: list[Guess] = []
    for time_s, frame in all_frames(path, fps):
        while row + 1 < len(windows) and time_s >= edges[row + 1]:
            row += 1
        if row != written:
            guesses, written = windows[row].top(look.top_k), row
        yield time_s, write_scores(frame, guesses, time_s, look)


def write_annotated(path: str | os.PathLike, frames: Iterable[tuple[float, np.ndarray]], *, fps: float = 30.0) -> int:
    """Write (time, picture) pairs as a video; the number of frames. They are taken one by one."""
    count = 0
    with VideoWriter(path, fps=fps) as writer:
        for time_s, frame in frames:
            writer.write(frame, time_s)
            count += 1
    return count
