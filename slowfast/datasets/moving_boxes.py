"""The built-in set with boxes: several textured squares per video, each moving in its own way.

Each square has one motion of ``MOTIONS`` and, half the time, flickers besides: the classes of its box, in the form of
AVA but with other videos, classes, key frames and rates. Where a square stands, how large it is and how it looks is
drawn alike for all motions (the place at the middle of the video, uniformly), so one frame tells next to nothing.
True boxes are exact; the "detected" ones of the test are the true ones moved a little, with some false ones between.

Every video is a pure function of (seed, split, number).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from slowfast.datasets.motion import write_video

MOTIONS = {"move_left": (-1, 0), "move_right": (1, 0), "move_up": (0, -1), "move_down": (0, 1), "stay": (0, 0)}
CLASSES = (*MOTIONS, "flicker")
SPLITS = ("train", "val")
SPEEDS = (0.08, 0.16)  # frames' sides per second
KEY_SECONDS = (0.75, 1.0, 1.25)  # of each video


@dataclass(frozen=True)
class BoxesSpec:
    """What is written: ``videos`` of train and val, of ``side`` pixels and ``frames`` frames at ``fps`` a second."""

    videos: tuple[int, int] = (240, 60)
    side: int = 64
    frames: int = 24
    fps: int = 12
    seed: int = 0


class Square(NamedTuple):
    """One square of a video."""

    corners: np.ndarray  # float64 [T, 4]: x1, y1, x2, y2 in pixels
    motion: str
    flickers: bool
    texture: np.ndarray  # uint8 [h, h, 3]
    phase: float


def draw_squares(spec: BoxesSpec, rng: np.random.Generator) -> list[Square]:
    """Two or three squares that never leave the frame and hardly touch."""
    squares: list[Square] = []
    seconds = np.arange(spec.frames) / spec.fps
    for _ in range(int(rng.integers(2, 4))):
        size = float(rng.uniform(0.2, 0.28)) * spec.side
        speed = float(rng.uniform(*SPEEDS)) * spec.side  # pixels a second
        motion, flickers = list(MOTIONS)[rng.integers(len(MOTIONS))], bool(rng.random() < 0.5)
        corners = _find_place(spec, squares, size, np.outer(seconds - seconds[-1] / 2, MOTIONS[motion]) * speed, rng)
        coarse = rng.integers(60, 256, (4, 4, 3), dtype=np.uint8)
        texture = Image.fromarray(coarse).resize((round(size), round(size)), Image.Resampling.NEAREST)
        if corners is not None:
            squares.append(Square(corners, motion, flickers, np.asarray(texture), float(rng.uniform(0, 1))))
    return squares


def _find_place(
    spec: BoxesSpec, others: list[Square], size: float, way: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Corners [T, 4] of a square on its ``way`` [T, 2] that leaves the others free; None if no place was found.

    The farthest that any square goes is kept from all edges, so that the place tells nothing of the motion.
    """
    margin = SPEEDS[1] / 2 * spec.side * (spec.frames - 1) / spec.fps + size / 2
    for _ in range(50):
        centre = rng.uniform(margin, spec.side - margin, 2) + way
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        if all(_overlap(corners, other.corners) <= 0.05 for other in others):
            return corners
    return None


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """The largest share of the first square that the second hides, over time."""
    size = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    return float((np.clip(size, 0, None).prod(axis=1) / (one[:, 2:] - one[:, :2]).prod(axis=1)).max())


def render(spec: BoxesSpec, squares: list[Square], rng: np.random.Generator) -> np.ndarray:
    """The frames, uint8 [T, H, W, 3]: the squares on a blurred ground with a little noise."""
    ground = Image.fromarray(rng.integers(20, 140, (5, 5, 3), dtype=np.uint8))
    ground = np.asarray(ground.resize((spec.side, spec.side), Image.Resampling.BICUBIC), dtype=np.float32)
    frames = np.repeat(ground[None], spec.frames, axis=0)
    for square in squares:
        size = len(square.texture)
        for number, (x, y) in enumerate(np.rint(square.corners[:, :2]).astype(int)):
            bright = 1.0
            if square.flickers:  # three times a second
                bright = 0.7 + 0.3 * np.sin(2 * np.pi * (3 * number / spec.fps + square.phase))
            place = frames[number, max(y, 0) : y + size, max(x, 0) : x + size]
            place[:] = bright * square.texture[: place.shape[0], : place.shape[1]]
    frames += rng.normal(0, 3, frames.shape)
    return frames.clip(0, 255).astype(np.uint8)


def make_video(spec: BoxesSpec, split: str, number: int) -> tuple[np.ndarray, list[Square], np.random.Generator]:
    """Frames [T, H, W, 3] and squares of one video, and the generator for what else belongs to it."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), number])
    squares = draw_squares(spec, rng)
    return render(spec, squares, rng), squares, rng


def box_rows(spec: BoxesSpec, name: str, squares: list[Square]) -> list[str]:
    """Lines of a list of true boxes: a row for each class of each box at each key frame."""
    rows = []
    for second in KEY_SECONDS:
        for number, square in enumerate(squares):
            box = ",".join(f"{value:.4f}" for value in square.corners[round(second * spec.fps)] / spec.side)
            for label in [square.motion, *(["flicker"] if square.flickers else [])]:
                rows.append(f"{name},{second:g},{box},{CLASSES.index(label) + 1},{number}\n")
    return rows


def detected_rows(spec: BoxesSpec, name: str, squares: list[Square], rng: np.random.Generator) -> list[str]:
    """Lines as a detector writes them: without classes, boxes a little beside, some false ones, scores last."""
    rows = []
    for second in KEY_SECONDS:
        boxes = [square.corners[round(second * spec.fps)] / spec.side for square in squares]
        found = [(box + rng.normal(0, 0.012, 4), rng.uniform(0.85, 1.0)) for box in boxes]
        if rng.random() < 0.3:
            corner = rng.uniform(0, 0.75, 2)
            found.append((np.concatenate([corner, corner + 0.2]), rng.uniform(0.7, 0.95)))
        for box, score in found:
            corners = ",".join(f"{value:.4f}" for value in np.clip(box, 0, 1))
            rows.append(f"{name},{second:g},{corners},,{score:.3f}\n")
    return rows


def write_boxes_dataset(
    folder: str | Path, spec: BoxesSpec | None = None, *, on_video: Callable[[], object] | None = None
) -> None:
    """Write ``videos/*.mp4``, ``train.csv`` and ``val.csv`` (true boxes), ``detected.csv`` (of val), ``labels.pbtxt``.

    ``on_video`` is called after each video, for a progress bar.
    """
    spec, folder = spec or BoxesSpec(), Path(folder)
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    for split, count in zip(SPLITS, spec.videos, strict=True):
        true, detected = [], []
        for number in range(count):
            name = f"{split}_{number:04d}"
            frames, squares, rng = make_video(spec, split, number)
            write_video(folder / "videos" / f"{name}.mp4", frames, fps=spec.fps)
            true += box_rows(spec, name, squares)
            detected += detected_rows(spec, name, squares, rng)
            if on_video is not None:
                on_video()
        (folder / f"{split}.csv").write_text("".join(true))
        if split == "val":
            (folder / "detected.csv").write_text("".join(detected))
    items = [f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in enumerate(CLASSES, start=1)]
    (folder / "labels.pbtxt").write_text("".join(items))
