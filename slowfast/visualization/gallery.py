"""A gallery: pictures in a folder, the same ones on one HTML page, and in TensorBoard where there is one."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from slowfast.visualization import page, plots
from slowfast.visualization.page import Html, Section, element, join, note
from slowfast.visualization.tensorboard import TensorboardSink

FPS = 4  # of animations
LEAST_SIDE = 240  # of frames that are written on, in pixels; smaller ones are enlarged
PAGE = "index.html"
FIRST = ("Clips", "Misclassified", "Classes")  # sections of the page, before others


class Gallery:
    """Pictures by section and subject. ``close`` writes the page and ends the board."""

    def __init__(self, folder: str | Path, board: TensorboardSink | None = None) -> None:
        self.folder = Path(folder)
        self.board = board
        self._sections: dict[str, dict[str, list[Html]]] = {}

    def add_picture(self, section: str, subject: str, name: str, picture: np.ndarray, *, tag: str = "") -> Path:
        """An uint8 [H, W, 3] as ``section/subject-name.png``; ``tag`` in TensorBoard, not shown there without one."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="png")
        if self.board is not None and tag:
            self.board.add_picture(tag, picture)
        return self._keep(section, subject, name, buffer.getvalue(), "png")

    def add_figure(self, section: str, subject: str, name: str, figure: Figure, *, tag: str = "") -> Path:
        """A figure, likewise."""
        if self.board is not None and tag:
            self.board.add_figure(tag, figure)
        return self._keep(section, subject, name, plots.to_png(figure), "png")

    def add_animation(
        self, section: str, subject: str, name: str, frames: Sequence[np.ndarray], *, tag: str = ""
    ) -> Path:
        """Frames as a GIF. It is in the folder and in TensorBoard, not on the page, which shows sheets."""
        data = to_gif(frames)
        if self.board is not None and tag:
            self.board.add_gif(tag, data, frames[0].shape[:2])
        return self._write(section, subject, name, data, "gif")

    def add_note(self, section: str, subject: str, text: str) -> None:
        """A line on the page."""
        self._sections.setdefault(section, {}).setdefault(subject, []).append(note(text))

    def close(self, title: str, lead: str) -> Path:
        """Write ``index.html``, whole in itself, and end the board; the path of the page."""
        sections = []
        order = [*(name for name in FIRST if name in self._sections), *self._sections]
        for name in dict.fromkeys(order):
            parts = [
                part
                for subject, pictures in self._sections[name].items()
                for part in (
                    element("h3", subject) if subject else None,
                    element("div", *pictures, class_="shelf many" if len(pictures) > 3 else "shelf"),
                )
            ]
            sections.append(Section(_file_name(name), name, join(parts)))
        header = element("div", element("h1", title), element("p", lead, class_="lead"), class_="top")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / PAGE
        path.write_text(page.render_page(title, header, sections), encoding="utf-8")
        if self.board is not None:
            self.board.close()
        return path

    def _keep(self, section: str, subject: str, name: str, data: bytes, suffix: str) -> Path:
        image = page.png_image(data, alt=f"{subject} {name}".strip())
        shown = element("figure", element("figcaption", name, class_="note"), image, class_="shown")
        self._sections.setdefault(section, {}).setdefault(subject, []).append(shown)
        return self._write(section, subject, name, data, suffix)

    def _write(self, section: str, subject: str, name: str, data: bytes, suffix: str) -> Path:
        stem = "-".join(_file_name(part) for part in (subject, name) if part)
        path = self.folder / _file_name(section) / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path


def _file_name(text: str) -> str:
    """``text`` as a part of a path: nothing in it that a shell or a file system takes for something else."""
    return re.sub(r"[^\w.]+", "_", text.lower()).strip("._")[:80] or "_"


def to_gif(frames: Sequence[np.ndarray], fps: float = FPS) -> bytes:
    """Frames uint8 [H, W, 3] as an endless GIF; equal neighbours become one that is shown longer."""
    pictures = [Image.fromarray(frame).quantize(256) for frame in frames]
    buffer = io.BytesIO()
    first, *rest = pictures
    first.save(buffer, format="gif", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


def write_labels(
    frames: np.ndarray, labels: Sequence[tuple[str, float]], *, colormap: str = "Pastel2"
) -> list[np.ndarray]:
    """Each frame of [T, H, W, 3] with ``labels`` in its top left corner: text, and its place 0..1 among the colours.

    Frames whose short side is below ``LEAST_SIDE`` are enlarged by a whole number first.
    """
    if colormap not in colormaps:
        raise ValueError(
            f"TENSORBOARD.MODEL_VIS.COLORMAP={colormap!r} is no colour map of matplotlib, such as Pastel2, tab20"
        )
    grow = max(1, -(-LEAST_SIDE // min(frames.shape[1:3])))
    written = []
    for frame in frames:
        picture = Image.fromarray(frame)
        if grow > 1:
            picture = picture.resize((picture.width * grow, picture.height * grow), Image.Resampling.BICUBIC)
        size = max(11, round(min(picture.size) / 20))
        font, step = ImageFont.load_default(size), round(size * 1.5)
        pen = ImageDraw.Draw(picture)
        for row, (text, place) in enumerate(labels):
            color = tuple(int(255 * part) for part in colormaps[colormap](place)[:3])
            width = round(font.getlength(text)) + size
            pen.rectangle((0, row * step, width, (row + 1) * step - 2), fill=color)
            pen.text((size // 2, row * step), text, font=font, fill=(20, 24, 34))
        written.append(np.asarray(picture))
    return written
