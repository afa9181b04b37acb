"""Frame mAP at IoU 0.5, as the official evaluation of AVA counts it, and the files it reads and writes.

The one idea: class by class, everything about all images at once. A detection looks only at the ground truth of its
class in its image, so a sort and a search list the few pairs to compare.

Gu et al., AVA: A Video Dataset of Spatio-temporally Localized Atomic Visual Actions, https://arxiv.org/abs/1705.08421.
An image is known by its key frame: the name of the video and the second (which may be a fraction). Class ids count
from 1, as in the files; column k of a network's scores belongs to id k + 1.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slowfast.evaluation.metrics import to_collective
from slowfast.utils.distributed import all_gather_ragged
from slowfast.utils.files import pathmgr

IOU = 0.5

KeyFrame = tuple[str, float]
"""An image: name of the video, second."""


# ------------------------------ counting ------------------------------


def match_boxes(
    images: np.ndarray, corners: np.ndarray, true_images: np.ndarray, true_corners: np.ndarray, iou: float = IOU
) -> np.ndarray:
    """Which detections of one class are right: bool [N].

    ``images`` [N] and ``true_images`` [G] are integers that name the image of each box of ``corners`` [N, 4] and
    ``true_corners`` [G, 4] (x1, y1, x2, y2). A detection means the true box of its image that it overlaps most (the
    first one on ties), and is right if that overlap is at least ``iou`` and it is the first to mean this box.

    NOTE: first in the order given, not by score. The original's evaluation counts so.
    """
    right = np.zeros(len(images), dtype=bool)
    by_image = np.argsort(true_images, kind="stable")
    first = np.searchsorted(true_images[by_image], images, side="left")
    counts = np.searchsorted(true_images[by_image], images, side="right") - first  # [N] true boxes of its image
    rows = np.flatnonzero(counts)
    if not len(rows):
        return right
    counts, first = counts[rows], first[rows]
    starts = np.cumsum(counts) - counts  # of each row's pairs among all pairs
    pair_row = np.repeat(np.arange(len(rows)), counts)
    pair_truth = by_image[np.arange(counts.sum()) - np.repeat(starts - first, counts)]
    overlap = pairwise_iou(corners[rows[pair_row]], true_corners[pair_truth])
    best = np.maximum.reduceat(overlap, starts)
    at_best = np.flatnonzero(overlap == best[pair_row])
    meant = pair_truth[at_best[np.unique(pair_row[at_best], return_index=True)[1]]]
    good = np.flatnonzero(best >= iou)
    right[rows[good[np.unique(meant[good], return_index=True)[1]]]] = True
    return right


def pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each row of ``boxes`` [P, 4] with the same row of ``others`` [P, 4]: float64 [P]."""
    size = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    shared = np.prod(np.maximum(size, 0.0), axis=1)
    return shared / (_area(boxes) + _area(others) - shared)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def precision_recall(scores: np.ndarray, right: np.ndarray, num_truth: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall [N] after each detection, from the highest score down.

    Among equal scores the one given last comes first, as in the original.
    """
    hits = np.cumsum(right[np.argsort(scores, kind="stable")[::-1]])
    return hits / np.arange(1, len(hits) + 1), hits / num_truth


def average_precision(precision: np.ndarray, recall: np.ndarray) -> float:
    """The area under the curve, precision made to fall monotonically (Pascal VOC, every point); 0 without points."""
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[steps] - recall[steps - 1]) * precision[steps]))


class Boxes(NamedTuple):
    """A table of boxes with one class each."""

    images: np.ndarray  # int64 [N]: row in a list of key frames
    corners: np.ndarray  # float64 [N, 4]: x1, y1, x2, y2, fractions of the image
    classes: np.ndarray  # int64 [N]: ids

    def where(self, kept: np.ndarray) -> Boxes:
        """The rows that ``kept`` selects."""
        return Boxes(*(column[kept] for column in self))


class Scored(NamedTuple):
    """Boxes with a score for each class."""

    images: np.ndarray  # int64 [R]: row in a list of key frames
    corners: np.ndarray  # float64 [R, 4]: x1, y1, x2, y2, fractions of the image
    scores: np.ndarray  # [R, K]: column k is the class of id k + 1

    @classmethod
    def of(cls, images: Sequence[int], corners: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> Scored:
        """From lists, or from anything that NumPy can make arrays of."""
        return cls(np.asarray(images, dtype=np.int64), np.asarray(corners, dtype=np.float64), np.asarray(scores))


class ClassResult(NamedTuple):
    """How well one class was found; ``ap`` is a fraction, NaN where there is nothing to find."""

    id: int
    name: str
    num_truth: int
    ap: float


def class_average_precision(found: Scored, truth: Boxes, class_id: int) -> float:
    """Average precision of one class as a fraction; NaN where no box of it is true.

    Boxes without an area are left out of what was found.
    """
    truth = truth.where(truth.classes == class_id)
    if not len(truth.images):
        return math.nan
    real = (found.corners[:, 2:] > found.corners[:, :2]).all(axis=1)
    images, corners, scores = found.images[real], found.corners[real], found.scores[real, class_id - 1]
    right = match_boxes(images, corners, truth.images, truth.corners)
    return average_precision(*precision_recall(scores, right, len(truth.images)))


def mean_ap(results: Iterable[ClassResult]) -> float:
    """The mean over the classes that occur, as a fraction; NaN if none does."""
    values = [result.ap for result in results if not math.isnan(result.ap)]
    return float(np.mean(values)) if values else math.nan


# ------------------------------ ground truth ------------------------------


@dataclass(frozen=True)
class GroundTruth:
    """What is to be found: boxes in key frames, of the classes that are judged, without the excluded key frames."""

    key_frames: list[KeyFrame]  # with at least one box
    boxes: Boxes
    class_names: Mapping[int, str]  # by id; these classes are judged
    excluded: frozenset[KeyFrame] = frozenset()

    @classmethod
    def read(cls, boxes_file: str, class_names: Mapping[int, str], excluded_file: str = "") -> GroundTruth:
        """From the official files; ``excluded_file`` may be empty. Boxes of classes without a name are dropped."""
        excluded = read_key_frames(excluded_file) if excluded_file else frozenset()
        rows: dict[KeyFrame, int] = {}
        images, corners, classes = [], [], []
        for place, key_frame, box, class_id in read_true_boxes(boxes_file):
            if class_id not in class_names or key_frame in excluded:
                continue
            if box[0] > box[2] or box[1] > box[3]:
                raise ValueError(f"{place}: the box {box} ends before it begins (x1, y1, x2, y2)")
            images.append(rows.setdefault(key_frame, len(rows)))
            corners.append(box)
            classes.append(class_id)
        table = Boxes(
            np.array(images, dtype=np.int64),
            np.array(corners, dtype=np.float64).reshape(-1, 4),
            np.array(classes, dtype=np.int64),
        )
        return cls(list(rows), table, dict(class_names), excluded)

    def every(self, seconds: float) -> GroundTruth:
        """Only the key frames whose second is a multiple of ``seconds``."""
        return self.without(key for key in self.key_frames if not on_grid(key[1], seconds))

    def without(self, key_frames: Iterable[KeyFrame]) -> GroundTruth:
        """Leaves out these key frames, on both sides of the comparison."""
        excluded = self.excluded | frozenset(key_frames)
        kept = np.array([key not in excluded for key in self.key_frames], dtype=bool)
        rows = np.cumsum(kept) - 1
        boxes = self.boxes.where(kept[self.boxes.images]) if len(kept) else self.boxes
        left = [key for key, stays in zip(self.key_frames, kept, strict=True) if stays]
        return GroundTruth(left, boxes._replace(images=rows[boxes.images]), self.class_names, excluded)

    def compare(self, key_frames: Sequence[KeyFrame], found: Scored) -> list[ClassResult]:
        """The result of every judged class, by id. ``found.images`` are rows of ``key_frames``.

        What was found in key frames without any true box counts as wrong.
        """
        rows = {key: row for row, key in enumerate(self.key_frames)}
        codes = [-1 if key in self.excluded else rows.setdefault(key, len(rows)) for key in key_frames]
        images = np.array(codes, dtype=np.int64)[found.images]
        kept = images >= 0
        found = Scored(images[kept], found.corners[kept], found.scores[kept])
        if max(self.class_names, default=0) > found.scores.shape[1]:
            raise ValueError(
                f"class id {max(self.class_names)} is judged, but the network has {found.scores.shape[1]} outputs: "
                f"set MODEL.NUM_CLASSES to {max(self.class_names)} or change AVA.LABEL_MAP_FILE"
            )
        numbers = np.bincount(self.boxes.classes, minlength=max(self.class_names, default=0) + 1)
        return [
            ClassResult(id, name, int(numbers[id]), class_average_precision(found, self.boxes, id))
            for id, name in sorted(self.class_names.items())
        ]


def on_grid(second: float, period: float) -> bool:
    """Whether ``second`` is a multiple of ``period``."""
    return math.fmod(second, period) == 0


# ------------------------------ metric ------------------------------


class FrameMAP:
    """A Metric over key frames: the mean average precision of boxes in percent, ``map``.

    Row r of the split (``batch.index``) is ``key_frames[r]``; ``batch.image_boxes`` [R, 5] says in which sample of the
    batch and where in the image each box lies. Each process keeps its own boxes; ``reduce`` gathers all of them, in
    order of rows, so that the result does not depend on how many processes there are.
    """

    def __init__(self, truth: GroundTruth, key_frames: Sequence[KeyFrame], num_classes: int) -> None:
        self.truth = truth
        self.key_frames = key_frames
        self.num_classes = num_classes
        self._rows: list[Tensor] = []
        self._corners: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._skipped: set[int] = set()
        self._results: list[ClassResult] | None = None

    def update(self, scores: Tensor, batch: Any) -> None:
        """Keep the scores [R, K] of the boxes of ``batch``."""
        if scores.shape[1] != self.num_classes:
            raise ValueError(f"scores of {scores.shape[1]} classes for MODEL.NUM_CLASSES={self.num_classes}")
        self._rows.append(batch.index.to(scores.device)[batch.image_boxes[:, 0].long()])
        self._corners.append(batch.image_boxes[:, 1:].float())
        self._scores.append(scores.detach().float())

    def skip(self, rows: Iterable[int]) -> None:
        """Leave these rows out: neither what is found there nor what is true counts."""
        self._skipped.update(rows)

    def reduce(self) -> None:
        """Gather the boxes of all processes; call it once, on every process, after the last update."""
        self._rows = _gather(self._rows, torch.zeros(0, dtype=torch.int64))
        self._corners = _gather(self._corners, torch.zeros(0, 4))
        self._scores = _gather(self._scores, torch.zeros(0, self.num_classes))
        skipped = torch.tensor(sorted(self._skipped), dtype=torch.int64)
        self._skipped = set(torch.cat(_gather([skipped], skipped)).tolist())

    @property
    def skipped(self) -> list[KeyFrame]:
        """Key frames left out."""
        return [self.key_frames[row] for row in sorted(self._skipped)]

    def found(self) -> Scored:
        """Every box with its scores, in order of rows; ``images`` are rows of ``key_frames``."""
        if not self._rows:
            return Scored(np.zeros(0, dtype=np.int64), np.zeros((0, 4)), np.zeros((0, self.num_classes)))
        rows, corners, scores = (torch.cat(parts).cpu().numpy() for parts in (self._rows, self._corners, self._scores))
        order = np.argsort(rows, kind="stable")
        return Scored(rows[order], corners[order].astype(np.float64), scores[order])

    @property
    def judged_truth(self) -> GroundTruth:
        """The ground truth without the key frames left out."""
        return self.truth.without(self.skipped) if self._skipped else self.truth

    def results(self) -> list[ClassResult]:
        """The result of every judged class; ``ValueError`` if nothing was kept or nothing is to be found."""
        if self._results is None:
            found = self.found()
            if not len(found.images):
                raise ValueError("mean average precision of no boxes: the split gave no batch to evaluate")
            bad = ~np.isfinite(found.scores).all(axis=1)
            if bad.any():
                video, second = self.key_frames[found.images[bad][0]]
                raise ValueError(f"{bad.sum()} boxes have scores that are not finite, first {video} at {second:g} s")
            truth = self.judged_truth
            if not truth.key_frames:
                raise ValueError(
                    "there is no true box to find: check AVA.GROUNDTRUTH_FILE, AVA.LABEL_MAP_FILE, AVA.EXCLUSION_FILE "
                    "and, for validation, AVA.FULL_TEST_ON_VAL (False keeps every fourth second)"
                )
            self._results = truth.compare(self.key_frames, found)
        return self._results

    def compute(self) -> dict[str, float]:
        """``map`` in percent."""
        return {"map": 100.0 * mean_ap(self.results())}


def _gather(parts: list[Tensor], empty: Tensor) -> list[Tensor]:
    """What every process has, in order of processes, on the CPU."""
    return [part.cpu() for part in all_gather_ragged(to_collective(torch.cat(parts) if parts else empty))]


# ------------------------------ files ------------------------------


def read_label_map(file: str) -> dict[int, str]:
    """Class names by id, from a ``pbtxt`` of entries ``item { name: "..." id: 1 }`` (or ``label_id``)."""
    with pathmgr.open(file, "r", encoding="utf-8-sig") as stream:
        text = stream.read()
    names: dict[int, str] = {}
    quoted = r'"((?:[^"\\]|\\.)*)"'
    for entry in re.finditer(r'\w+\s*\{((?:[^{}"]|"(?:[^"\\]|\\.)*")*)\}', text):
        name = re.search(rf"\bname\s*:\s*{quoted}", entry[1])
        number = re.search(r"\b(?:label_)?id\s*:\s*(\d+)", entry[1])
        if name is None or number is None:
            raise ValueError(f"{file}: the entry {entry[0]!r} has no name or no id")
        if int(number[1]) in names or int(number[1]) < 1:
            raise ValueError(f"{file}: id {number[1]} stands there twice, or is less than 1")
        names[int(number[1])] = re.sub(r"\\(.)", r"\1", name[1])
    if not names:
        raise ValueError(f'{file} holds no class: expected entries like item {{ name: "walk" id: 1 }}')
    return names


def read_key_frames(file: str) -> frozenset[KeyFrame]:
    """Key frames from a csv of ``video,second``."""
    keys = set()
    for place, row in _rows(file):
        if len(row) != 2:
            raise ValueError(f"{place}: {len(row)} columns instead of 2 (video, second)")
        keys.add((row[0], _number(place, "second", row[1])))
    return frozenset(keys)


def read_true_boxes(file: str) -> Iterator[tuple[str, KeyFrame, tuple[float, float, float, float], int]]:
    """Place in the file, key frame, corners and class id of the rows of a ground-truth csv.

    Its columns are video, second, x1, y1, x2, y2 (fractions of the image), class id and, perhaps, a person's id.
    Rows without a class id say only that somebody is there and are left out.
    """
    for place, row in _rows(file):
        if len(row) not in (7, 8):
            raise ValueError(f"{place}: {len(row)} columns instead of 7 or 8 (video, second, x1, y1, x2, y2, class id)")
        if not row[6].strip():
            continue
        corners = tuple(_number(place, name, text) for name, text in zip(("x1", "y1", "x2", "y2"), row[2:6]))
        yield place, (row[0], _number(place, "second", row[1])), corners, int(_number(place, "class id", row[6]))


def _rows(file: str) -> Iterator[tuple[str, list[str]]]:
    with pathmgr.open(file, "r", encoding="utf-8-sig", newline="") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if row:
                yield f"{file}, line {number}", row


def _number(place: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{place}: {name} {text!r} is not a number")
    return value


def second_text(second: float) -> str:
    """The second as the official files write it: four digits, and a fraction only where there is one."""
    return f"{int(second):04d}" if second == int(second) else f"{second:.10g}"


def detection_lines(key_frames: Sequence[KeyFrame], found: Scored, class_ids: Iterable[int]) -> Iterator[str]:
    """Lines of the official detections csv: video, second, corners, class id, score; one for each box and class."""
    ids = sorted(class_ids)
    heads = [f"{video},{second_text(second)}" for video, second in key_frames]
    for image, corners, scores in zip(found.images.tolist(), found.corners.tolist(), found.scores.tolist()):
        box = ",".join(f"{value:.3f}" for value in corners)
        for id in ids:
            yield f"{heads[image]},{box},{id},{scores[id - 1]:.4f}\n"


def truth_lines(truth: GroundTruth) -> Iterator[str]:
    """Lines of the ground truth in the form of the detections csv, each with score 1."""
    heads = [f"{video},{second_text(second)}" for video, second in truth.key_frames]
    for image, corners, id in zip(*(column.tolist() for column in truth.boxes)):
        yield f"{heads[image]},{','.join(f'{value:.3f}' for value in corners)},{id},1.0000\n"
