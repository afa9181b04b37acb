"""A look at the data before training: what the lists say, which files are there, which of them decode.

The one idea: the data sets themselves read the annotation, as they will in training; what is looked at here are the
records that came of it. Only lists that cannot be read are looked at line by line, to name all wrong lines at once.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.build import DATASET_REGISTRY, build_dataset
from slowfast.datasets.encode import hash_of
from slowfast.datasets.isolated import Lost, run_isolated
from slowfast.datasets.kinetics import Kinetics, has_lists, wrong_lines
from slowfast.datasets.records import class_ids, listed_names
from slowfast.datasets.sources import LEAST_DECODABLE, DecodeError, VideoFile
from slowfast.utils.tables import text_table

logger = logging.getLogger(__name__)

_FRAMES_LOOKED_AT = 3  # of a video that is not decoded whole: the first, the middle, the last
_FRAMES_AT_ONCE = 16
_SHOWN = 12  # findings of a kind in the text
_CLASSES_SHOWN = 8
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


@dataclass(frozen=True)
class Finding:
    """Something to know about one line, video or class. An ``error`` spoils training or its results."""

    split: str
    level: str  # error, warning
    kind: str  # list, missing, undecodable, damaged, duplicate, leak, classes
    what: str  # the file, the video, the class
    text: str


@dataclass
class SplitFacts:
    """What one split holds."""

    split: str
    rows: int = 0
    videos: int = 0  # different ones
    missing: int = 0
    decoded: int = 0  # of those tried
    undecodable: int = 0
    labels: list[int] = field(default_factory=list)  # rows of each class, by its id


@dataclass
class DataCheck:
    """What was found: facts about each split, and findings, errors first."""

    splits: list[SplitFacts]
    findings: list[Finding]
    class_names: list[str] | None = None

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not any(finding.level == "error" for finding in self.findings)

    def summary(self) -> str:
        """A table of the splits, one of the classes, and the first findings of every kind."""
        parts = [self._split_table(), self._class_table()]
        by_kind: dict[tuple[str, str], list[Finding]] = {}
        for finding in self.findings:
            by_kind.setdefault((finding.level, finding.kind), []).append(finding)
        for (level, kind), found in by_kind.items():
            lines = [f"{level}: {kind} ({len(found)})"]
            lines += [f"  {one.split}: {one.what}: {one.text}" for one in found[:_SHOWN]]
            lines += [f"  and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
            parts.append("\n".join(lines))
        errors = sum(finding.level == "error" for finding in self.findings)
        parts.append(f"{errors} errors, {len(self.findings) - errors} warnings")
        return "\n\n".join(filter(None, parts))

    def _split_table(self) -> str:
        rows = []
        for one in self.splits:
            used = [count for count in one.labels if count]
            balance = f"{min(used)}-{max(used)}" if used else "-"
            tried = f"{one.undecodable} of {one.decoded}"
            rows.append((one.split, one.rows, one.videos, one.missing, tried, len(used), balance))
        return text_table(("split", "rows", "videos", "missing", "undecodable", "classes", "rows per class"), rows)

    def _class_table(self) -> str:
        """The classes with most and fewest rows of the first split."""
        if not self.splits or not any(self.splits[0].labels):
            return ""
        counts = self.splits[0].labels
        order = sorted(range(len(counts)), key=lambda label: (-counts[label], label))
        shown = (
            order if len(order) <= _CLASSES_SHOWN else [*order[: _CLASSES_SHOWN // 2], *order[-_CLASSES_SHOWN // 2 :]]
        )
        rows = [
            (self.name_of(label), *(one.labels[label] if label < len(one.labels) else 0 for one in self.splits))
            for label in shown
        ]
        if len(shown) < len(order):
            rows.insert(_CLASSES_SHOWN // 2, (f"({len(order) - len(shown)} more)", *("..." for _ in self.splits)))
        return text_table(("class", *(one.split for one in self.splits)), rows)

    def name_of(self, label: int) -> str:
        """``3 archery``, or only the number."""
        known = self.class_names is not None and label < len(self.class_names)
        return f"{label} {self.class_names[label]}" if known else str(label)

    def write(self, file: str | os.PathLike) -> None:
        """All findings and facts as JSON, or with the suffix ``.csv`` the findings as a table."""
        with open(file, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            if str(file).lower().endswith(".csv"):
                writer = csv.writer(stream)
                writer.writerow(("level", "kind", "split", "what", "text"))
                writer.writerows((one.level, one.kind, one.split, one.what, one.text) for one in self.findings)
            else:
                found = {"ok": self.ok, "splits": [asdict(one) for one in self.splits], "class_names": self.class_names}
                json.dump({**found, "findings": [asdict(one) for one in self.findings]}, stream, indent=1)


def build_data_check(
    cfg: CfgNode,
    *,
    sample: int | None = 64,
    whole: bool = False,
    same_bytes: bool = False,
    workers: int = 1,
    timeout_s: float = 120.0,
    progress: Progress = lambda items, total: items,
) -> DataCheck:
    """Look at the splits that the configuration trains, validates and tests on.

    Of each split ``sample`` videos are decoded (None: all, 0: none), three frames of each or with ``whole`` all. Videos
    of two splits are compared by their paths, with ``same_bytes`` also by their bytes.
    """
    if sample is not None and sample < 0:
        raise ValueError(f"a sample of {sample} videos: give 0 or more")
    wanted = [(split, cfg.TRAIN.DATASET) for split in ("train", "val") if cfg.TRAIN.ENABLE]
    wanted += [("test", cfg.TEST.DATASET)] if cfg.TEST.ENABLE else []
    if not wanted:
        raise ValueError("TRAIN.ENABLE and TEST.ENABLE are both off: there is no data to look at")
    lenient = cfg.clone()
    lenient.defrost()
    lenient.TEST.SKIP_BAD_VIDEOS = True  # so that all missing videos are found, not the first
    lenient.freeze()
    check, records = DataCheck([], []), {}
    for split, name in wanted:
        check.splits.append(SplitFacts(split))
        try:
            records[split] = build_dataset(name, lenient, split).records
        except (ValueError, KeyError, OSError) as error:
            check.findings += build_list_findings(cfg, split, name, error)
    for facts in check.splits:
        if facts.split in records:
            mine = _Rows(records[facts.split])
            named = getattr(mine.records, "class_names", None) or _beside(cfg.DATA.PATH_TO_DATA_DIR)
            check.class_names = check.class_names or named
            check.findings += _look(facts, mine, cfg.MODEL.NUM_CLASSES, sample, whole, workers, timeout_s, progress)
    rows = {split: _Rows(found) for split, found in records.items()}
    check.findings += _leaks(rows, same_bytes)
    check.findings += _class_findings(check)
    check.findings.sort(key=lambda finding: finding.level)  # "error" comes before "warning"
    return check


def build_list_findings(cfg: CfgNode, split: str, name: str, error: Exception) -> list[Finding]:
    """Why the annotation of ``split`` cannot be read: every wrong line of a list, else what the data set said."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    entry = DATASET_REGISTRY.get(name.capitalize()) if name.capitalize() in DATASET_REGISTRY else None
    folder = cfg.DATA.PATH_TO_DATA_DIR
    file = os.path.join(folder, f"{split}.csv")
    is_list = isinstance(entry, type) and issubclass(entry, Kinetics) and has_lists(folder) and os.path.isfile(file)
    try:
        lines = wrong_lines(file, cfg.DATA.PATH_LABEL_SEPARATOR, cfg.MODEL.NUM_CLASSES) if is_list else []
    except ValueError:  # not text: what ``error`` says
        lines = []
    found = [Finding(split, "error", "list", f"{file}, line {number}", why) for number, why in lines]
    return found or [Finding(split, "error", "list", name, text)]


def _beside(folder: str) -> list[str] | None:
    """The class names of ``class_names.json`` in ``folder``."""
    try:
        ids = class_ids((), folder)
    except ValueError:
        return None
    return sorted(ids, key=ids.__getitem__) or None


class _Rows:
    """The rows of a split and its different videos."""

    def __init__(self, records: Sequence[Any]) -> None:
        self.records = records
        path = getattr(records, "path", None) or (lambda row: records[row].path)
        self.paths = [path(row) for row in range(len(records))]
        self.first: dict[str, int] = {}  # row of each different path
        for row, name in enumerate(self.paths):
            self.first.setdefault(name, row)

    def labels(self) -> Iterator[int]:
        """Every class of every row."""
        known = getattr(self.records, "labels", None)
        if known is not None:
            yield from known.tolist()
            return
        for record in self.records:
            if hasattr(record, "labels"):  # key frames: class ids of each box, from 1
                yield from (label - 1 for box in record.labels for label in box)
            elif isinstance(record.label, Tensor):
                yield from record.label.nonzero().flatten().tolist()
            else:
                yield int(record.label)


def _look(
    facts: SplitFacts,
    rows: _Rows,
    num_classes: int,
    sample: int | None,
    whole: bool,
    workers: int,
    timeout_s: float,
    progress: Progress,
) -> Iterator[Finding]:
    """Fill in ``facts`` of one split and give what is wrong with its videos."""
    facts.rows, facts.videos = len(rows.paths), len(rows.first)
    counts = Counter(rows.labels())
    facts.labels = [counts[label] for label in range(max([num_classes - 1, *counts]) + 1)]
    times = Counter(rows.paths)
    if not hasattr(rows.records, "key_frames"):  # of those, a video has many
        labels = _labels_of(rows, {path for path, count in times.items() if count > 1})
        for path, given in labels.items():
            text, differ = f"listed {times[path]} times", len(given) > 1
            text += f", with different labels ({', '.join(map(str, sorted(given)))})" if differ else ""
            yield Finding(facts.split, "error" if differ else "warning", "duplicate", path, text)
    missing = dict(_missing(rows))
    facts.missing = len(missing)
    for path, text in missing.items():
        yield Finding(facts.split, "error", "missing", path, text)
    there = [row for path, row in rows.first.items() if path not in missing]
    if sample is not None and sample < len(there):
        there = sorted(np.random.default_rng(0).choice(there, sample, replace=False).tolist())
    answers = run_isolated(partial(_decode, rows.records, whole), there, workers=workers, timeout_s=timeout_s)
    facts.decoded = len(there)
    for place, found in progress(answers, len(there)):
        level, reason = ("error", found.reason) if isinstance(found, Lost) else found
        if reason:
            facts.undecodable += level == "error"
            kind = "undecodable" if level == "error" else "damaged"
            yield Finding(facts.split, level, kind, rows.paths[there[place]], reason)


def _labels_of(rows: _Rows, paths: set[str]) -> dict[str, set[int]]:
    """The single labels that each of ``paths`` is listed with; none where a row has several at once."""
    found: dict[str, set[int]] = {path: set() for path in paths}
    for row, path in enumerate(rows.paths):
        if path in found:
            label = rows.records[row].label
            found[path] |= set() if isinstance(label, Tensor) else {int(label)}
    return found


def _missing(rows: _Rows) -> Iterator[tuple[str, str]]:
    """Path and text for each video that is not there, or of which images are missing; a folder is listed once."""
    folders: dict[str, set[str]] = {}

    def is_there(path: str) -> bool:
        folder, name = os.path.split(path.rstrip("/"))
        if folder not in folders:
            folders[folder] = listed_names(folder)
        return "://" in path or name in folders[folder]

    for path, row in rows.first.items():
        record = rows.records[row]
        files = getattr(record, "files", None)
        if files is None or path not in (os.path.dirname(files[0]), files[0]):  # a video file, or a folder
            if not is_there(getattr(record, "file", path)):
                yield path, "no such file"
            continue
        absent = [file for file in files if not is_there(file)]
        folders.clear()  # the images of a video are its own
        if absent:
            yield path, f"{len(absent)} of {len(files)} images do not exist, the first: {os.path.basename(absent[0])}"


def _decode(records: Sequence[Any], whole: bool, row: int) -> tuple[str, str]:
    """(level, reason) of what is wrong with the frames of one video; no reason where nothing is."""
    torch.set_num_threads(1)
    try:
        source = records[row].open()
        total = source.info.num_frames
        if not whole:
            source.read(np.linspace(0, total - 1, _FRAMES_LOOKED_AT).astype(np.int64))
        elif isinstance(source, VideoFile):
            sound = sum(1 for _ in source.sound_frames())
            if sound < total:
                level = "warning" if sound >= LEAST_DECODABLE * total else "error"
                return level, f"{sound} of {total} frames can be decoded"
        else:
            for first in range(0, total, _FRAMES_AT_ONCE):
                source.read(range(first, min(first + _FRAMES_AT_ONCE, total)))
    except DecodeError as error:
        return "error", error.reason
    return "", ""


def _leaks(rows: dict[str, _Rows], same_bytes: bool) -> Iterator[Finding]:
    """Videos of the training set that are also validated or tested on."""
    train = rows.get("train")
    for split in ("val", "test") if train is not None else ():
        if split not in rows:
            continue
        real = {os.path.realpath(path): path for path in train.first}
        others = {path: os.path.realpath(path) for path in rows[split].first}
        for path, place in others.items():
            if place in real:
                yield Finding(split, "error", "leak", path, f"is {real[place]} of the training set")
        if same_bytes:
            new = [path for path, place in others.items() if place not in real]
            for path, twin in _twins(list(train.first), new):
                yield Finding(split, "error", "leak", path, f"has the same bytes as {twin} of the training set")


def _twins(some: list[str], others: list[str]) -> Iterator[tuple[str, str]]:
    """(other, one) of files with equal bytes; only files of one size are read."""
    by_size: dict[int, list[str]] = {}
    for path in filter(os.path.isfile, some):
        by_size.setdefault(os.path.getsize(path), []).append(path)
    digests: dict[int, dict[str, str]] = {}
    for path in filter(os.path.isfile, others):
        size = os.path.getsize(path)
        if size in by_size:
            if size not in digests:
                digests[size] = {hash_of(one): one for one in by_size[size]}
            twin = digests[size].get(hash_of(path))
            if twin is not None:
                yield path, twin


def _class_findings(check: DataCheck) -> Iterator[Finding]:
    """Classes that are never trained, and among them those that are asked for."""
    train = next((one for one in check.splits if one.split == "train"), None)
    if train is None or not train.rows:
        return
    for label, count in enumerate(train.labels):
        if count:
            continue
        asked = [one for one in check.splits if one is not train and label < len(one.labels) and one.labels[label]]
        for one in asked:
            text = f"{one.labels[label]} rows of {one.split}, none for training"
            yield Finding(one.split, "error", "classes", check.name_of(label), text)
        if not asked:
            yield Finding(
                "train", "warning", "classes", check.name_of(label), "no row for training (MODEL.NUM_CLASSES)"
            )
