"""What a job left in its output folder, read back as plain values.

Every part may be missing: a job that only tested has no curves, one that stopped early no test. Nothing here
needs a network, a GPU or a video.
"""

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from slowfast.config import get_cfg, load_cfg
from slowfast.config.defaults import flatten
from slowfast.datasets.records import CLASS_NAMES_FILE
from slowfast.utils.files import pathmgr
from slowfast.visualization.class_names import load_class_names

Record = dict[str, Any]


@dataclass(frozen=True)
class VideoResult:
    """One tested video.

    ``labels`` has one class, or any number if multi-label; ``top`` holds (class, share in 0..1), best first.
    """

    path: str
    labels: tuple[int, ...]
    views: int
    top: tuple[tuple[int, float], ...]

    @property
    def predicted(self) -> int:
        """The class with the highest score."""
        return self.top[0][0]

    @property
    def right(self) -> bool:
        """Whether the best prediction is a true class."""
        return self.predicted in self.labels


@dataclass(frozen=True)
class ViewTest:
    """The result of one test: ``clips`` x ``crops`` views of each video; ``scores`` [N, K] where they were kept.

    ``skipped`` videos could not be decoded and are not among ``videos``.
    """

    clips: int
    crops: int
    videos: list[VideoResult]
    scores: np.ndarray | None
    multi_label: bool
    skipped: int = 0

    @cached_property
    def num_classes(self) -> int:
        """Classes the scores or, without them, labels and predictions speak of."""
        if self.scores is not None:
            return self.scores.shape[1]
        return 1 + max((c for video in self.videos for c in (*video.labels, *(k for k, _ in video.top))), default=0)

    def topk(self, k: int) -> float:
        """Percent of videos whose true class is among the ``k`` best."""
        hits = sum(any(c in video.labels for c, _ in video.top[:k]) for video in self.videos)
        return 100.0 * hits / max(len(self.videos), 1)

    @cached_property
    def counts(self) -> np.ndarray:
        """Confusion counts [K, K]: rows true, columns predicted; single-label only."""
        return count_confusions(
            [video.labels[0] for video in self.videos], [video.predicted for video in self.videos], self.num_classes
        )

    @cached_property
    def average_precision(self) -> np.ndarray:
        """Average precision per class in percent, [K]; NaN where a class has no positive video."""
        if self.scores is None:
            return np.full(self.num_classes, np.nan)
        targets = np.zeros(self.scores.shape, dtype=bool)
        for row, video in enumerate(self.videos):
            targets[row, list(video.labels)] = True
        return average_precisions(self.scores, targets)

    def summary(self) -> Record:
        """One row of the accuracy table."""
        row: Record = {"clips": self.clips, "crops": self.crops, "videos": len(self.videos)}
        if self.multi_label:
            known = self.average_precision[~np.isnan(self.average_precision)]
            return row | {"map": float(known.mean()) if known.size else 0.0}
        return row | {"top1_acc": self.topk(1), "top5_acc": self.topk(5)}


@dataclass
class JobResults:
    """One output folder.

    ``settings`` and ``defaults`` map full key names to values; ``model_size`` has ``params`` and, for one view,
    ``flops``, as far as the log tells them.
    """

    folder: Path
    settings: Record
    defaults: Record
    records: list[Record]
    tests: list[ViewTest]
    bad_videos: list[dict[str, str]]
    class_names: list[str]
    model_size: dict[str, float]
    notes: list[str] = field(default_factory=list)

    @property
    def found_anything(self) -> bool:
        """Whether a job has left anything here."""
        return bool(self.settings or self.records or self.tests)

    @property
    def main_test(self) -> ViewTest | None:
        """The test with the most views."""
        return max(self.tests, key=lambda test: test.clips * test.crops, default=None)

    @property
    def changed_settings(self) -> Record:
        """Settings that differ from the defaults."""
        return {key: value for key, value in self.settings.items() if value != self.defaults.get(key)}

    def history(self, kind: str) -> list[tuple[float, Record]]:
        """Records whose ``_type`` starts with ``kind``, each with its position in epochs, in order.

        A job that resumed or started again wrote some positions twice: what came later replaces what it repeats.
        """
        kept: list[tuple[float, Record]] = []
        for record in self.records:
            position = _position(record) if str(record.get("_type", "")).startswith(kind) else None
            if position is None:
                continue
            while kept and kept[-1][0] >= position - 1e-9:
                kept.pop()
            kept.append((position, record))
        return kept

    def accuracy_rows(self) -> list[Record]:
        """One row per number of views: from the files per video, else from the final lines of the log."""
        if self.tests:
            return [test.summary() for test in self.tests]
        rows: dict[str, Record] = {}
        for record in self.records:
            if record.get("split") != "test_final" and record.get("mode") != "test":
                continue
            # NOTE: a multi-label test repeats its map under the names of the accuracies.
            keys = next(((key,) for key in ("map", "loss") if key in record), ("top1_acc", "top5_acc"))
            row = {key: record[key] for key in ("views", "videos", "key_frames", "boxes") if key in record}
            rows[str(record.get("views"))] = row | {key: _number(record.get(key)) for key in keys}
        return list(rows.values())


def read_job(output_dir: str | Path) -> JobResults:
    """Everything a report can be made of, from the folder of a job."""
    folder = Path(output_dir)
    notes: list[str] = []
    settings = _read_settings(folder / "config.yaml", notes)
    tests = [test for path in folder.glob("test_*x*.jsonl") if (test := _read_test(path, notes)) is not None]
    tests.sort(key=lambda test: (test.clips * test.crops, test.clips))
    num_classes = max((test.num_classes for test in tests), default=int(settings.get("MODEL.NUM_CLASSES", 0)))
    return JobResults(
        folder=folder,
        settings=settings,
        defaults=_flatten(get_cfg()),
        records=_read_records(folder, notes),
        tests=tests,
        bad_videos=_read_bad_videos(folder / "bad_videos.csv"),
        class_names=_find_class_names(folder, settings, num_classes, notes),
        model_size=_read_model_size(folder / "stdout.log"),
        notes=notes,
    )


def read_class_names(path: str | Path | None, num_classes: int) -> list[str]:
    """Names by class id from a json file ``{name: id}``; a class without a name, or all without a file, by number."""
    names = [str(index) for index in range(num_classes)]
    if path is None:
        return names
    with pathmgr.open(str(path)) as file:
        ids = json.load(file)
    for name, index in ids.items():
        if isinstance(index, int) and 0 <= index < num_classes:
            names[index] = name.strip().strip('"')
    return names


def class_names_path(chosen: str, data_dir: str) -> str | None:
    """The file that names the classes: the ``chosen`` one, else ``class_names.json`` beside the lists of the data."""
    if chosen:
        return chosen
    beside = Path(data_dir) / CLASS_NAMES_FILE
    return str(beside) if data_dir and beside.is_file() else None


def find_class_names(chosen: str, data_dir: str, separator: str, num_classes: int) -> list[str]:
    """Names by class id: of the file that names them, else of class folders or lists with names in ``data_dir``."""
    path = class_names_path(chosen, data_dir)
    if path is None and data_dir:
        from slowfast.datasets.class_names import find_class_names as names_of_annotation

        names = names_of_annotation(data_dir, separator)
        if names is not None and len(names) == num_classes:
            return names
    return read_class_names(path, num_classes)


def names_or_numbers(chosen: str, data_dir: str, separator: str, num_classes: int, notes: list[str]) -> list[str]:
    """As ``find_class_names``; where that fails a note says why, and classes go by their numbers."""
    try:
        return find_class_names(chosen, data_dir, separator, num_classes)
    except (OSError, ValueError, AttributeError) as error:
        notes.append(f"class names were not found in {class_names_path(chosen, data_dir)}: {error}")
        return read_class_names(None, num_classes)


def count_confusions(labels: Sequence[int], predictions: Sequence[int], num_classes: int) -> np.ndarray:
    """How often class i (row) was predicted as class j (column), [K, K]."""
    flat = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predictions, dtype=np.int64)
    return np.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)


def average_precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision in percent of each class, [K], from [N, K]; NaN where a class has no positive video."""
    from sklearn.metrics import average_precision_score

    result = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero(targets.any(axis=0)):
        result[index] = 100.0 * average_precision_score(targets[:, index], scores[:, index])
    return result


def confused_pairs(counts: np.ndarray, limit: int) -> list[tuple[int, int, int, float]]:
    """The most frequent mistakes: (true class, predicted class, videos, share of the true class)."""
    totals = counts.sum(axis=1)
    rows, columns = np.nonzero(counts * (1 - np.eye(len(counts), dtype=counts.dtype)))
    pairs = [(int(r), int(c), int(counts[r, c]), float(counts[r, c] / totals[r])) for r, c in zip(rows, columns)]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[:2]))[:limit]


def _read_settings(path: Path, notes: list[str]) -> Record:
    if not path.is_file():
        return {}
    try:
        return _flatten(load_cfg(str(path)))
    except (ValueError, KeyError, AssertionError) as error:
        notes.append(f"{path.name} was read without checking its keys: {error}")
    try:
        return _flatten(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, AttributeError) as error:
        notes.append(f"{path.name} cannot be read: {error}")
        return {}


def _flatten(tree: Mapping[str, Any]) -> Record:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in flatten(tree).items()}


def _read_records(folder: Path, notes: list[str]) -> list[Record]:
    """Lines of ``json_stats.log``; kinds it does not keep (the single iterations) come from ``stdout.log``."""
    records = list(_parse_records(folder / "json_stats.log", notes))
    kinds = {_kind(record) for record in records}
    return records + [record for record in _parse_records(folder / "stdout.log", notes) if _kind(record) not in kinds]


def _parse_records(path: Path, notes: list[str]) -> Iterable[Record]:
    if not path.is_file():
        return
    broken = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            _, found, body = line.partition("json_stats: ")
            if not found:
                continue
            try:
                record = json.loads(body)
            except json.JSONDecodeError:
                broken += 1
                continue
            if isinstance(record, dict):
                yield record
    if broken:
        notes.append(f"{path.name}: {broken} damaged lines were left out")


def _kind(record: Record) -> str:
    return str(record.get("_type") or record.get("split") or record.get("mode"))


def _position(record: Record) -> float | None:
    """Where a record stands, in epochs done: "3/8" is 3, with iteration "5/10" it is 2.5."""
    epoch, _, _ = str(record.get("epoch", record.get("cur_epoch", ""))).partition("/")
    if not epoch.isdigit():
        return None
    iteration, slash, total = str(record.get("iter", "")).partition("/")
    if slash and iteration.isdigit() and total.isdigit() and int(total):
        return int(epoch) - 1 + int(iteration) / int(total)
    return float(epoch)


def _read_test(path: Path, notes: list[str]) -> ViewTest | None:
    name = re.fullmatch(r"test_(\d+)x(\d+)", path.stem)
    return None if name is None else read_test(path, (int(name[1]), int(name[2])), notes)


def read_test(path: Path, views: tuple[int, int], notes: list[str]) -> ViewTest | None:
    """The lines of a test with ``views`` (clips, crops) of each video; None, and a note, where there are none."""
    videos: list[VideoResult] = []
    scores: list[np.ndarray] = []
    multi_label, broken, skipped = False, 0, 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                if row.get("skipped"):
                    skipped += 1
                    continue
                row_scores = np.asarray(row.get("scores") or [], dtype=np.float32)
                multi_label = multi_label or isinstance(row["label"], list)
                videos.append(_video_result(row, row_scores))
                scores.append(row_scores)
            except (ValueError, KeyError, TypeError, AttributeError):
                broken += 1
    if broken:
        notes.append(f"{path.name}: {broken} damaged lines were left out")
    if not videos:
        notes.append(f"{path.name} names no tested video")
        return None
    complete = len({row.size for row in scores}) == 1 and scores[0].size > 0
    return ViewTest(
        clips=views[0],
        crops=views[1],
        videos=videos,
        scores=np.stack(scores) if complete else None,
        multi_label=multi_label,
        skipped=skipped,
    )


def _video_result(row: Record, scores: np.ndarray) -> VideoResult:
    views = int(row.get("views", 1))
    label = row["label"]
    return VideoResult(
        path=str(row["path"]),
        labels=tuple(int(index) for index in (label if isinstance(label, list) else [label])),
        views=views,
        top=tuple(
            (int(index), _share(float(score), scores, views, isinstance(label, list))) for index, score in row["top"]
        ),
    )


def _share(score: float, scores: np.ndarray, views: int, multi_label: bool) -> float:
    """A score as a number in 0..1 for people: its part of all scores, or its mean over views if multi-label."""
    if not multi_label and scores.size:
        if scores.min() >= 0 and scores.sum() > 0:
            return score / float(scores.sum())
        return float(np.exp(score - scores.max()) / np.exp(scores - scores.max()).sum())
    return min(max(score if 0 <= score <= 1 else score / max(views, 1), 0.0), 1.0)


def _read_model_size(path: Path) -> dict[str, float]:
    """The last "x M parameters" and "x GFLOPs" in the log."""
    if not path.is_file():
        return {}
    size: dict[str, float] = {}
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            for pattern, name, unit in ((r"([\d.]+) M parameters", "params", 1e6), (r"([\d.]+) GFLOPs", "flops", 1e9)):
                if "json_stats" not in line and (found := re.search(pattern, line)):
                    size[name] = float(found[1]) * unit
    return size


def _read_bad_videos(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def _find_class_names(folder: Path, settings: Record, num_classes: int, notes: list[str]) -> list[str]:
    """Names by class id: of the file that the job was given, where it is still there, else those that it left."""
    chosen, data_dir = settings.get("TENSORBOARD.CLASS_NAMES_PATH", ""), settings.get("DATA.PATH_TO_DATA_DIR", "")
    left = folder / CLASS_NAMES_FILE
    if left.is_file() and not (chosen and pathmgr.isfile(chosen)):
        try:
            return load_class_names(left, num_classes)
        except ValueError as error:
            notes.append(f"class names were passed over: {error}")
    return names_or_numbers(chosen, data_dir, settings.get("DATA.PATH_LABEL_SEPARATOR", " "), num_classes, notes)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
