"""Sheets of pictures: the frames of a clip, what a network sees in them, and what it makes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from slowfast.visualization import plots
from slowfast.visualization.gradcam import ROLLOUT, Explanation, overlay
from slowfast.visualization.timeline import readable

COLUMNS = 8  # frames in a row, at most
LABEL = 0.95  # inches for the name of a row
BARS = 2.6  # inches for the predictions
CAPTION_GROUND = (10, 14, 24)


class Row(NamedTuple):
    """Pictures of one kind, uint8 [H, W, 3] each, and what they are."""

    label: str
    pictures: Sequence[np.ndarray]


def spread(count: int, columns: int = COLUMNS) -> list[int]:
    """At most ``columns`` places of ``count``, evenly spread from the first to the last."""
    return np.linspace(0, count - 1, min(count, columns)).round().astype(int).tolist()


def row_name(pathway: str) -> str:
    """What a map is called on a sheet."""
    return {ROLLOUT: "attention", "clip": "Grad-CAM"}.get(pathway, f"Grad-CAM,\n{pathway}")


def explained_frames(
    frames: np.ndarray, explanation: Explanation, row: int = 0, *, colormap: str = "viridis", alpha: float = 0.5
) -> dict[str, np.ndarray]:
    """The frames of every pathway with its map on them, uint8 [T_p, H, W, 3], of clip ``row``.

    ``frames`` uint8 [T, H, W, 3] are those of the whole clip.
    """
    return {
        pathway: overlay(frames[list(explanation.frames[pathway])], maps[row], colormap, alpha)
        for pathway, maps in explanation.maps.items()
    }


def explained_rows(
    frames: np.ndarray,
    explanation: Explanation,
    row: int = 0,
    *,
    columns: int = COLUMNS,
    colormap: str = "viridis",
    alpha: float = 0.5,
) -> list[Row]:
    """Some frames of the clip, and below them the same frames with each pathway's map on them.

    A pathway that sees fewer frames shows the map of the nearest one that it sees.
    """
    chosen = spread(len(frames), columns)
    rows = [Row("clip", list(frames[chosen]))]
    for pathway in explanation.maps:
        maps = explanation.on_every_frame(pathway, len(frames))[row][chosen]
        rows.append(Row(row_name(pathway), list(overlay(frames[chosen], maps, colormap, alpha))))
    return rows


def sheet(
    rows: Sequence[Row],
    predictions: Sequence[tuple[str, float, bool | None]] = (),
    *,
    heading: str = "",
    width: float = 9.6,
) -> Figure:
    """Rows of pictures below each other, and the best predictions beside them; ``width`` in inches.

    ``predictions``: name, share in 0..1, and whether it is right (None: not known).
    """
    columns = max(len(row.pictures) for row in rows)
    height, breadth = rows[0].pictures[0].shape[:2]
    bars = BARS if predictions else 0.0
    tile = (width - LABEL - bars) / columns
    figure = Figure(figsize=(width, len(rows) * tile * height / breadth + 0.45), facecolor="white")
    FigureCanvasAgg(figure)
    top = 1 - 0.4 / figure.get_figheight()
    grid = figure.add_gridspec(
        len(rows),
        columns,
        left=LABEL / width,
        right=1 - bars / width,
        top=top,
        bottom=0.05 / figure.get_figheight(),
        wspace=0.03,
        hspace=0.03,
    )
    for place, row in enumerate(rows):
        for column, picture in enumerate(row.pictures):
            axes = figure.add_subplot(grid[place, column])
            axes.imshow(picture, aspect="auto")
            axes.set_axis_off()
        y = top * (1 - (place + 0.5) / len(rows))
        figure.text(0.012, y, row.label, va="center", color=plots.MUTED, fontsize=8.5)
    if predictions:
        side = figure.add_axes((1 - (bars - 0.25) / width, 0.05, (bars - 0.4) / width, top - 0.08))
        plots.prediction_bars(side, predictions)
    if heading:
        text = heading if len(heading) <= 100 else heading[:99] + "…"
        y = 1 - 0.12 / figure.get_figheight()
        text = text.replace("$", r"\$")
        figure.text(0.012, y, text, va="top", color=plots.INK, fontsize=10, fontweight="bold")
    return figure


def side_by_side(
    frames: np.ndarray,
    explained: dict[str, np.ndarray],
    explanation: Explanation,
    *,
    times_s: Sequence[float],
    class_name: str,
) -> Iterator[np.ndarray]:
    """For a video: each frame of the clip beside what every pathway makes of it, uint8 [H, W, 3].

    Small frames are enlarged. Below each panel stands what it is; ``times_s`` [T] are those of ``frames``.
    """
    nearest = {}
    for pathway in explained:
        distance = np.abs(np.arange(len(frames))[:, None] - np.array(explanation.frames[pathway])[None])
        nearest[pathway] = distance.argmin(1)
    for t, frame in enumerate(frames):
        panels = [captioned(frame, ("clip", f"{times_s[t]:.2f} s"))]
        for pathway, pictures in explained.items():
            row = int(nearest[pathway][t])
            moment = f"{class_name}, {times_s[explanation.frames[pathway][row]]:.2f} s"
            panels.append(captioned(pictures[row], (row_name(pathway).replace("\n", " "), moment)))
        yield np.concatenate(panels, axis=1)


def captioned(frame: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """``frame`` (uint8 [H, W, 3]), enlarged where it is small, above lines of text that are cut where it ends."""
    picture = readable(frame)
    font = ImageFont.load_default(max(11, round(min(picture.size) / 18)))
    step, gap = round(font.size * 1.4), font.size // 2
    made = Image.new("RGB", (picture.width, picture.height + step * len(lines) + gap), CAPTION_GROUND)
    made.paste(picture)
    pen = ImageDraw.Draw(made)
    for row, line in enumerate(lines):
        shown = line
        while shown and font.getlength(shown) > picture.width - 2 * gap:
            shown = shown.removesuffix("…")[:-1] + "…" if len(shown) > 2 else ""
        pen.text((gap, picture.height + gap // 2 + row * step), shown, font=font, fill=(255, 255, 255))
    return np.asarray(made)


def best_shares(scores: torch.Tensor, class_names: Sequence[str], k: int, true: Sequence[int] | None = None) -> list:
    """The ``k`` best of ``scores`` [K] as ``sheet`` wants them; ``true`` classes None: not known."""
    best = scores.topk(min(k, len(scores)))
    return [
        (class_names[index], min(max(score, 0.0), 1.0), None if true is None else index in true)
        for score, index in zip(best.values.tolist(), best.indices.tolist())
    ]
