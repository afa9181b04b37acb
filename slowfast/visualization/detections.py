"""The report of a test of boxes: average precision per class, and key frames with what was found and what is true.

Made from ``ap_per_class.csv`` and ``key_frames.jsonl`` in the folder of a job; the pictures are read from where the
job read its clips.
"""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from slowfast.visualization import page, plots
from slowfast.visualization.page import Html, Section, element, join, note

TABLE, KEY_FRAMES = "ap_per_class.csv", "key_frames.jsonl"
PICTURE_SIDE = 400  # longest side of a key frame in the page, in pixels
LABELS = 2  # classes written at each box that was found
LEAST_SCORE = 0.05
READING_ERRORS = (OSError, ValueError, RuntimeError, IndexError)

PictureReader = Callable[[str, int], np.ndarray]
"""File and number of a frame in it -> RGB, uint8 [H, W, 3]."""


@dataclass(frozen=True)
class ClassAP:
    """One class: how many true boxes it has, and its average precision in percent (NaN if it has none)."""

    name: str
    num_truth: int
    ap: float


@dataclass(frozen=True)
class BoxTest:
    """What a test of boxes left: its classes, and some key frames as lines of ``key_frames.jsonl``."""

    classes: list[ClassAP]
    key_frames: list[dict[str, Any]]

    @property
    def mean(self) -> float:
        """mAP in percent."""
        known = [item.ap for item in self.classes if not math.isnan(item.ap)]
        return float(np.mean(known)) if known else math.nan


def read_box_test(folder: str | Path) -> BoxTest | None:
    """The test of boxes in the folder of a job; None where there is none."""
    table, frames = Path(folder) / TABLE, Path(folder) / KEY_FRAMES
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        classes = [
            ClassAP(row["name"], int(row["true_boxes"]), float(row["ap_percent"] or "nan"))
            for row in csv.DictReader(file)
        ]
    lines = frames.read_text(encoding="utf-8").splitlines() if frames.is_file() else []
    return BoxTest(classes, [json.loads(line) for line in lines])


def box_sections(test: BoxTest, *, num_frames: int = 9, read_picture: PictureReader | None = None) -> list[Section]:
    """The sections of the report."""
    return [
        Section("classes", "Classes", _classes(test)),
        Section("key-frames", "Key frames", _key_frames(test, num_frames, read_picture or read_key_picture)),
    ]


def box_figures(test: BoxTest, *, num_frames: int = 6, read_picture: PictureReader | None = None) -> dict[str, Figure]:
    """The same as figures by name, for a README or a paper."""
    figures = {"classes": class_figure(test)}
    shown = [_boxed(line, read_picture or read_key_picture) for line in choose(test.key_frames, num_frames)]
    frames = [(boxed, caption) for boxed, caption in shown if isinstance(boxed, plots.BoxedFrame)]
    if frames:
        figures["key_frames"] = plots.boxed_frames(*zip(*frames, strict=True))
    return figures


def class_figure(test: BoxTest) -> Figure:
    """Bars of average precision, with the number of true boxes at each name."""
    known = [item for item in test.classes if not math.isnan(item.ap)]
    return plots.class_bars(
        [f"{item.name} ({item.num_truth:,})" for item in known],
        [item.ap for item in known],
        label="average precision at IoU 0.5 in percent (true boxes)",
        max_bars=100,
        title=f"mAP {test.mean:.1f} % of {len(known)} classes",
    )


def choose(lines: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` of the key frames, evenly spread."""
    return [lines[i] for i in np.unique(np.linspace(0, len(lines) - 1, count).astype(int))] if lines else []


def read_key_picture(file: str, frame: int) -> np.ndarray:
    """A frame of a video, or an image, at most ``PICTURE_SIDE`` pixels long."""
    from slowfast.datasets.sources import open_source

    picture = Image.fromarray(open_source(file).read([frame])[0].numpy())
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _classes(test: BoxTest) -> Html:
    known = [item for item in test.classes if not math.isnan(item.ap)]
    rows = []
    for item in sorted(test.classes, key=lambda item: (math.isnan(item.ap), item.ap, item.name)):
        if math.isnan(item.ap):
            cell = element("td", "-", data_key="-1")
        else:
            meter = element("div", page.bar(item.ap / 100), element("b", f"{item.ap:.1f}"), class_="meter")
            cell = element("td", meter, data_key=f"{item.ap:.4f}")
        rows.append([item.name, f"{item.num_truth:,}", cell])
    table = page.table(
        ["Class", "True boxes", "Average precision, %"], rows, numeric=(1,), id="class-table", class_="sortable"
    )
    text = f"{len(known)} of {len(test.classes)} classes have true boxes, the weakest first; their mean is mAP."
    return join([note(text), element("div", table, class_="tall") if len(rows) > 14 else table])


def _key_frames(test: BoxTest, count: int, read_picture: PictureReader) -> Html:
    if not test.key_frames:
        return note(f"No key frames in this folder ({KEY_FRAMES}).")
    plot_list = []
    for number, line in enumerate(choose(test.key_frames, count)):
        boxed, caption = _boxed(line, read_picture)
        if not isinstance(boxed, plots.BoxedFrame):
            plot_list.append(note(f"{caption} cannot be read any more: {boxed}"))
            continue
        svg = page.themed(plots.to_svg(plots.boxed_frames([boxed], [caption]), f"keyframe{number}"))
        plot_list.append(element("div", svg, class_="plot", role="img", aria_label=caption))
    text = (
        f"Solid blue: boxes that were given to the network, with their {LABELS} best classes. "
        "Dashed orange: the true boxes and their classes."
    )
    return join([note(text), element("div", *plot_list, class_="plots columns-3")])


def _boxed(line: dict[str, Any], read_picture: PictureReader) -> tuple[plots.BoxedFrame | str, str]:
    """The picture with its boxes, or why it cannot be read; and a caption."""
    caption = f"{line['video']}, second {line['second']:g}"
    try:
        frame = read_picture(line["file"], line["frame"])
    except READING_ERRORS as error:
        return str(error), caption
    found = []
    for item in line["found"]:
        top = [f"{name} {score:.2f}" for name, score in item["top"][:LABELS] if score >= LEAST_SCORE]
        found.append((item["box"], "\n".join(top) or "nothing"))
    true = [(item["box"], "\n".join(item["classes"])) for item in line["true"]]
    return plots.BoxedFrame(frame, found, true), caption
