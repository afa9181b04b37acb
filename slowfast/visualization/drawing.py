"""What is drawn on the frames around a key frame: labels of the whole picture, or boxes of people with theirs.

The one idea: a prediction belongs to its key frame. Towards the frames before and after it fades, and a few frames
away nothing of it is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from slowfast.visualization.box_predictor import BoxPrediction, GivenBoxes
from slowfast.visualization.live import LiveClip, Shot
from slowfast.visualization.predictor import ClipPrediction

SMALL_SIDE = 240  # pictures with a shorter side are enlarged until it is at least twice that, for the text's sake
TRUTH = (230, 40, 40)  # of true boxes
# Of people, by their number: easy to tell apart on most pictures.
OUTLINES = ((60, 220, 90), (70, 170, 255), (255, 190, 40), (240, 110, 230), (90, 230, 230), (255, 130, 80))
GROUND = 0.6  # opacity of labels at the key frame
RIGHT_EDGE = 5 / 6  # of the width: boxes that begin beyond have their labels at their right edge

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelRule:
    """Which classes are written: the ``top_k`` best if given, else those above a threshold of their own."""

    top_k: int | None = None
    common: float = 0.7  # least score of the classes in ``common_names``
    uncommon: float = 0.3  # of all others
    common_names: frozenset[str] = frozenset()

    def choose(self, scores: Tensor, names: Sequence[str]) -> list[int]:
        """Indices of classes, best first."""
        order = scores.argsort(descending=True, stable=True).tolist()
        if self.top_k is not None:
            return order[: self.top_k]
        least = {True: self.common, False: self.uncommon}
        return [index for index in order if scores[index] >= least[names[index] in self.common_names]]


@dataclass(frozen=True)
class DrawStyle:
    """How predictions are drawn. ``reach`` counts frames before and after a key frame."""

    rule: LabelRule = LabelRule()
    reach: int = 10
    colormap: str = "Pastel2"  # of labels, by class

    def __post_init__(self) -> None:
        if self.colormap not in colormaps:
            raise ValueError(
                f"TENSORBOARD.MODEL_VIS.COLORMAP={self.colormap!r} is no colormap of matplotlib: "
                "choose Pastel2, viridis, tab20, ..."
            )

    def weight(self, distance: int) -> float:
        """How opaque what belongs to a key frame ``distance`` frames away is: 1 there, falling evenly, at last 0."""
        return max(0.0, 1 - abs(distance) / (self.reach + 1))

    def label_color(self, index: int, num_classes: int) -> Color:
        """The ground of a class's label."""
        return tuple(round(255 * value) for value in colormaps[self.colormap](index / num_classes)[:3])


class Label(NamedTuple):
    """A line of text on a coloured ground."""

    text: str
    color: Color


class Rectangle(NamedTuple):
    """A part of a picture in pixels, without its right and lower edge."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Overlay:
    """A box (fractions of the picture) with its labels; without an outline the labels of the whole picture."""

    box: tuple[float, float, float, float]
    labels: tuple[Label, ...]
    outline: Color | None = None
    number: str = ""  # of the person
    at_bottom: bool = False


# ---------------------------------------------------------------- of predictions


def overlays_of(prediction: BoxPrediction | ClipPrediction, style: DrawStyle) -> list[Overlay]:
    """What is drawn around the key frame of ``prediction``."""
    if isinstance(prediction, ClipPrediction):
        return [Overlay((0.0, 0.0, 1.0, 1.0), _labels(prediction.scores, prediction.class_names, style))]
    found = []
    for row, box in enumerate(prediction.boxes.tolist()):
        number = prediction.people[row] if prediction.people else row + 1
        labels = _labels(prediction.scores[row], prediction.class_names, style)
        found.append(Overlay(tuple(box), labels, OUTLINES[(number - 1) % len(OUTLINES)], str(number)))
    return found


def overlays_of_truth(given: GivenBoxes, class_names: Sequence[str]) -> list[Overlay]:
    """What is drawn around a key frame whose boxes and classes are known."""
    return [
        Overlay(
            tuple(box),
            tuple(Label(f"[GT] {class_names[label - 1]}", TRUTH) for label in sorted(labels)),
            TRUTH,
            at_bottom=True,
        )
        for box, labels in zip(given.boxes.tolist(), given.labels)
    ]


def _labels(scores: Tensor, names: Sequence[str], style: DrawStyle) -> tuple[Label, ...]:
    return tuple(
        Label(f"[{float(scores[index]):.2f}] {names[index]}", style.label_color(index, len(names)))
        for index in style.rule.choose(scores, names)
    )


# ---------------------------------------------------------------- on one picture


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A picture that is too small for text by a whole number larger; others as they are."""
    side = min(picture.shape[:2])
    if side >= SMALL_SIDE:
        return picture
    grow = -(-2 * SMALL_SIDE // side)
    image = Image.fromarray(picture)
    return np.asarray(image.resize((image.width * grow, image.height * grow), Image.Resampling.BICUBIC))


def draw(picture: np.ndarray, overlays: Sequence[tuple[Overlay, float]]) -> np.ndarray:
    """``picture`` (RGB, uint8 [H, W, 3]) with overlays, each as opaque as its weight; text is always opaque.

    Labels lie over all boxes, and move up or down where they would cover others.
    """
    if not overlays:
        return picture
    image = Image.fromarray(picture)
    pen = ImageDraw.Draw(image, "RGBA")
    font = ImageFont.load_default(max(11, round(min(image.size) / 28)))
    sides = (image.width - 1, image.height - 1) * 2
    corners = [tuple(round(side * length) for side, length in zip(overlay.box, sides)) for overlay, _ in overlays]
    taken: list[Rectangle] = []
    for place, (overlay, weight) in zip(corners, overlays):
        if overlay.outline is not None:
            _outline(pen, place, overlay, weight, width=max(3, min(image.size) // 160))
            if overlay.number:
                taken.append(_number(pen, place, overlay, font, weight))
    for place, (overlay, weight) in zip(corners, overlays):
        _write(pen, place, overlay, font, weight, image.size, taken)
    return np.asarray(image)


def _outline(pen: ImageDraw.ImageDraw, corners: tuple, overlay: Overlay, weight: float, width: int) -> None:
    """A box; that of the truth is dashed."""
    color = (*overlay.outline, round(255 * weight))
    if not overlay.at_bottom:
        pen.rectangle(corners, outline=color, width=width)
        return
    left, top, right, bottom = corners
    dash = 5 * width
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - width + 1):
            pen.rectangle((x, y, min(x + dash, right), y + width - 1), fill=color)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - width + 1):
            pen.rectangle((x, y, x + width - 1, min(y + dash, bottom)), fill=color)


def _number(pen: ImageDraw.ImageDraw, corners: tuple, overlay: Overlay, font, weight: float) -> Rectangle:
    """The person's number, inside the lower right corner; where that is."""
    _, _, right, bottom = corners
    width, height = round(font.getlength(overlay.number)) + font.size // 2, round(font.size * 1.3)
    place = (right - width, bottom - height, right, bottom)
    pen.rectangle(place, fill=(*overlay.outline, round(255 * weight)))
    middle = ((place[0] + right) / 2, (place[1] + bottom) / 2)
    pen.text(middle, overlay.number, font=font, fill=_ink(overlay.outline), anchor="mm")
    return Rectangle(*place)


def _write(
    pen: ImageDraw.ImageDraw,
    corners: tuple,
    overlay: Overlay,
    font,
    weight: float,
    size: tuple[int, int],
    taken: list[Rectangle],
) -> None:
    """Labels upwards from the top edge as far as there is room, the rest below it; those of the truth at the bottom.

    They stay together, as near to that as they find room beside what is ``taken``, where they are added.
    """
    left, top, right, bottom = corners
    step, gap = round(font.size * 1.35), max(2, font.size // 4)
    edge = bottom if overlay.at_bottom else top
    room = 0 if overlay.outline is None else max(0, edge // step)
    above = list(overlay.labels[:room])
    # The best label stays nearest to the top of the picture; what has no room above follows below the edge.
    rows = [(edge - step * (len(above) - row), label) for row, label in enumerate(above)]
    inner = edge if overlay.outline is not None else edge + gap
    rows += [(inner + step * row, label) for row, label in enumerate(overlay.labels[room:])]
    placed = []
    for y, label in rows:
        width = round(font.getlength(label.text)) + 2 * gap
        x = right - width if left > RIGHT_EDGE * size[0] else left
        x = max(0, min(x, size[0] - width))
        placed.append((x, y, width, label))
    if not placed:
        return
    whole = Rectangle(
        min(x for x, *_ in placed), rows[0][0], max(x + width for x, _, width, _ in placed), rows[-1][0] + step
    )
    moved = free_row(whole, taken, size[1]) - whole.top
    taken.append(Rectangle(whole.left, whole.top + moved, whole.right, whole.bottom + moved))
    for x, y, width, label in placed:
        y += moved
        pen.rectangle((x, y, x + width - 1, y + step - 1), fill=(*label.color, round(255 * GROUND * weight)))
        ink = _ink(label.color)
        halo = tuple(255 - value for value in ink)  # so that it can be read where the ground has faded
        stroke = {"stroke_width": 1, "stroke_fill": halo} if weight < 0.7 else {}
        pen.text((x + gap, y + step / 2), label.text, font=font, fill=ink, anchor="lm", **stroke)


def free_row(wanted: Rectangle, taken: Sequence[Rectangle], height: int) -> int:
    """The top nearest to that of ``wanted`` where it covers nothing of ``taken`` and stays in a picture so high.

    Where there is no such place, its own.
    """
    beside = [other for other in taken if wanted.left < other.right and other.left < wanted.right]
    needed = wanted.bottom - wanted.top
    tops = [wanted.top, *(other.bottom for other in beside), *(other.top - needed for other in beside)]
    for top in sorted(tops, key=lambda top: abs(top - wanted.top)):
        clear = all(top + needed <= other.top or other.bottom <= top for other in beside)
        if clear and (top == wanted.top or 0 <= top <= height - needed):
            return top
    return wanted.top


def _ink(ground: Color) -> Color:
    red, green, blue = ground
    return (20, 20, 20) if 0.3 * red + 0.59 * green + 0.11 * blue > 110 else (255, 255, 255)


# ---------------------------------------------------------------- on a stream


class Drawn(NamedTuple):
    """A frame, what is to be drawn on it, and whether a key frame is near."""

    shot: Shot
    overlays: list[tuple[Overlay, float]]

    def picture(self) -> np.ndarray:
        """The picture, drawn on."""
        return draw(enlarged(self.shot.picture()), self.overlays)


class _Key(NamedTuple):
    index: int  # of the key frame in the stream
    overlays: list[Overlay]


def overlaid(
    found: Iterable[tuple[LiveClip, BoxPrediction | ClipPrediction | None]],
    style: DrawStyle,
    *,
    fps: float,
    truth: Sequence[GivenBoxes] = (),
    class_names: Sequence[str] = (),
) -> Iterator[Drawn]:
    """Every frame once, in order, with what belongs to the nearest key frame and to the nearest one of ``truth``.

    Frames after a key frame wait for the next one, in case that is nearer.
    """
    marks = [(given.key_s, overlays_of_truth(given, class_names)) for given in truth]
    times = np.array([time for time, _ in marks])
    waiting: list[Shot] = []
    before: _Key | None = None

    def finish(shots: Iterable[Shot], *keys: _Key | None) -> Iterator[Drawn]:
        for shot in shots:
            near = min((key for key in keys if key), key=lambda key: abs(shot.index - key.index), default=None)
            layers: list[tuple[Overlay, float]] = []
            if near is not None:
                layers += [(overlay, style.weight(shot.index - near.index)) for overlay in near.overlays]
            if marks:
                row = int(np.abs(times - shot.time_s).argmin())
                weight = style.weight(round((shot.time_s - times[row]) * fps))
                layers += [(overlay, weight) for overlay in marks[row][1]]
            yield Drawn(shot, [(overlay, weight) for overlay, weight in layers if weight > 0])

    for clip, prediction in found:
        waiting += clip.fresh
        if prediction is None:
            yield from finish(waiting, before)
            waiting = []
            continue
        key = _Key(clip.key.index, overlays_of(prediction, style))
        yield from finish([shot for shot in waiting if shot.index <= key.index], before, key)
        waiting = [shot for shot in waiting if shot.index > key.index]
        before = key
    yield from finish(waiting, before)


def timed(
    frames: Iterable[tuple[Drawn, np.ndarray]], *, fps: float, output_fps: float = -1, slow_motion: int = 1
) -> Iterator[tuple[float, np.ndarray]]:
    """Time and picture of each frame to write: at its own time, or with ``output_fps`` above 0 evenly at that rate.

    Frames near a key frame come ``slow_motion`` times each, and what follows comes later.
    """
    if slow_motion < 1:
        raise ValueError(f"DEMO.SLOWMO={slow_motion} is not 1 or more")
    even = output_fps > 0
    step, later, written = 1 / (output_fps if even else fps), 0.0, 0
    for frame, picture in frames:
        times = slow_motion if frame.overlays else 1
        for number in range(times):
            yield (written * step if even else frame.shot.time_s + later + number * step), picture
            written += 1
        later += (times - 1) * step
