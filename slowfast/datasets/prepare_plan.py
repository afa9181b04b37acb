"""What to prepare: videos and lists, from a folder, from lists, or from the official annotation of Kinetics.

The one idea: planning only looks at names. Whether a video can be used is found out when its turn comes.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slowfast.datasets.folders import SPLITS, drawn_split, is_video, list_classes
from slowfast.datasets.kinetics import load_records
from slowfast.datasets.records import CLASS_NAMES_FILE, VIDEO_SUFFIXES, class_ids, contents, some

FOLDER = "videos"  # of the prepared files


@dataclass(frozen=True)
class Video:
    """A file to prepare and the name of what it becomes, relative to the output folder."""

    source: str
    target: str
    part_s: tuple[float, float] | None = None  # its seconds that are wanted, if the file turns out to be uncut


@dataclass(frozen=True)
class Row:
    """A line of a list: the number of its video, or why it has none."""

    split: str
    video: int | None
    label: int
    name: str  # of the video, for people
    reason: str = ""


@dataclass
class Plan:
    """Videos to prepare, and the lists that are made of them."""

    videos: list[Video] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    class_ids: dict[str, int] = field(default_factory=dict)  # empty where labels are numbers, or there are none


@dataclass(frozen=True)
class KineticsRow:
    """One line of an official Kinetics annotation file."""

    label: str | None  # the test files of some releases have none
    youtube_id: str
    start_s: float
    end_s: float
    split: str

    @property
    def file_names(self) -> tuple[str, str]:
        """Names, without suffix, that the video may have; the second stands for an uncut video too."""
        return f"{self.youtube_id}_{round(self.start_s):06d}_{round(self.end_s):06d}", self.youtube_id


def read_kinetics(file: str | os.PathLike) -> list[KineticsRow]:
    """An official annotation csv: ``label,youtube_id,time_start,time_end,split``, in any order, perhaps with others."""
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        needed = {"youtube_id", "time_start", "time_end"}
        missing = sorted(needed - set(reader.fieldnames or ()))
        if missing:
            raise ValueError(
                f"{file}: the header lacks {', '.join(missing)}; it is that of Kinetics' annotation files: "
                "label,youtube_id,time_start,time_end,split"
            )
        rows = []
        for line in reader:
            try:
                times = float(line["time_start"]), float(line["time_end"])
                split = _kinetics_split(line.get("split") or Path(file).stem)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file}, line {reader.line_num}: {error}") from error
            rows.append(KineticsRow(line.get("label") or None, line["youtube_id"], *times, split))
    if not rows:
        raise ValueError(f"{file} lists no video")
    return rows


def _kinetics_split(text: str) -> str:
    named = {name for name in SPLITS if name in text.lower()}
    if len(named) != 1:
        raise ValueError(f"split {text!r} is not one of train, val (validate), test")
    return named.pop()


def plan_kinetics(files: Sequence[str | os.PathLike], folder: str, class_names: str = "") -> Plan:
    """Videos anywhere under ``folder``, named ``<id>_<start>_<end>`` or ``<id>``, as the annotation ``files`` say.

    Ids are those of the file ``class_names``, else places among the sorted labels. A video is its annotated part where
    the file is longer than that.
    """
    _check_folder(folder)
    rows = [row for file in files for row in read_kinetics(file)]
    ids = _class_ids({row.label for row in rows if row.label}, folder, class_names)
    files_of: dict[str, list[str]] = {}
    for path in _all_videos(folder):
        files_of.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(path)
    plan, wanted = Plan(class_ids=ids), []
    for row in rows:
        cut, uncut = row.file_names
        found = files_of.get(cut) or files_of.get(uncut)
        label = ids.get(row.label, 0)
        if not row.label or not found:
            reason = "no such file" if row.label else "the annotation gives no label"
            plan.rows.append(Row(row.split, None, label, cut, reason))
            continue
        # Where several files have that name, the one in a folder of this split is meant.
        source = next((path for path in found if row.split in Path(path).parts), found[0])
        suffix = os.path.splitext(source)[1]
        wanted.append((source, f"{row.split}/{row.label}/{cut}{suffix}", None if cut in files_of else _part(row)))
        plan.rows.append(Row(row.split, len(wanted) - 1, label, cut))
    plan.videos = _with_targets(wanted)
    return plan


def _part(row: KineticsRow) -> tuple[float, float]:
    return row.start_s, row.end_s


def plan_folder(folder: str, seed: int = 0, class_names: str = "") -> Plan:
    """The videos of a folder: of class folders, perhaps in folders train, val and test; or all of them, unlabelled.

    Without split folders the split is drawn as training would draw it. Unlabelled videos have the label 0 and are all
    for training.
    """
    _check_folder(folder)
    split_classes = {split: list_classes(os.path.join(folder, split), _is_file) for split in SPLITS}
    split_classes = {split: classes for split, classes in split_classes.items() if classes}
    rows: list[tuple[str, str, str]] = []  # split, class, path relative to the folder
    if split_classes:
        for split, classes in split_classes.items():
            rows += [(split, name, f"{split}/{name}/{video}") for name, files in classes.items() for video in files]
    else:
        for name, files in list_classes(folder, _is_file).items():
            rows += [(drawn_split(f"{name}/{video}", seed), name, f"{name}/{video}") for video in files]
    if not rows:
        rows = [("train", "", os.path.relpath(path, folder)) for path in _all_videos(folder)]
        if not rows:
            raise ValueError(f"no videos ({', '.join(VIDEO_SUFFIXES)}) in {folder!r}, which holds {contents(folder)}")
    names = {name for _, name, _ in rows if name}
    ids = _class_ids(names, folder, class_names) if names else {}
    plan = Plan(class_ids=ids)
    plan.videos = _with_targets((os.path.join(folder, path), path, None) for _, _, path in rows)
    plan.rows = [Row(split, n, ids.get(name, 0), path) for n, (split, name, path) in enumerate(rows)]
    return plan


def plan_lists(lists: str, folder: str, separator: str = " ") -> Plan:
    """The videos of ``{train,val,test}.csv`` in the folder ``lists``; their paths are relative to ``folder``."""
    plan, wanted, place = Plan(), [], {}
    for split in SPLITS:
        file = os.path.join(lists, f"{split}.csv")
        if not os.path.isfile(file):
            continue
        records = load_records(file, separator, folder)
        if records.class_names:
            plan.class_ids = {name: number for number, name in enumerate(records.class_names)}
        for record in records:
            number = None
            if os.path.isfile(record.path):
                path = os.path.relpath(record.path, folder)
                inside = path if not path.startswith("..") else record.path.lstrip("/")
                number = place.setdefault(record.path, len(wanted))
                if number == len(wanted):
                    wanted.append((record.path, inside, None))
            missing = "" if number is not None else "no such file"
            plan.rows.append(Row(split, number, record.label, record.path, missing))
    if not plan.rows:
        raise ValueError(f"no train.csv, val.csv or test.csv in {lists!r}, which holds {contents(lists)}")
    names = os.path.join(lists, CLASS_NAMES_FILE)
    if not plan.class_ids and os.path.isfile(names):
        plan.class_ids = dict(class_ids((), lists))
    plan.videos = _with_targets(wanted)
    return plan


def _is_file(item: os.DirEntry) -> bool:
    return item.is_file() and is_video(item)


def _check_folder(folder: str) -> None:
    if not os.path.isdir(folder):
        raise ValueError(f"there is no folder {folder!r}")


def _class_ids(names: Iterable[str], folder: str, class_names: str) -> dict[str, int]:
    """Ids from the file ``class_names`` if there is one, else as training numbers the classes of ``folder``."""
    if not class_names:
        return dict(class_ids(names, folder))
    with open(class_names, encoding="utf-8-sig") as stream:
        ids = json.load(stream)
    if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f'{class_names} is not {{"name": id, ...}} with the ids 0, 1, 2, ... each once')
    unknown = sorted(set(names) - set(ids))
    if unknown:
        raise ValueError(f"{class_names} lacks {len(unknown)} classes: {some(unknown)}")
    return ids


def _all_videos(folder: str) -> list[str]:
    """Every video file under ``folder``, in sorted order; links to folders are followed, but none twice."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        videos = (name for name in names if name.lower().endswith(VIDEO_SUFFIXES) and not name.startswith("."))
        found += [os.path.join(place, name) for name in sorted(videos)]
    return found


def _with_targets(wanted: Iterable[tuple[str, str, tuple[float, float] | None]]) -> list[Video]:
    """A video for each (source, wished name, part), named uniquely and without what could separate path and label."""
    wanted = list(wanted)
    names = [re.sub(r"[\s,;|]+", "_", name) for _, name, _ in wanted]
    stems = [os.path.splitext(name)[0] for name in names]
    taken: set[str] = set()
    count = {stem.casefold(): 0 for stem in stems}
    for stem in stems:
        count[stem.casefold()] += 1
    videos = []
    for (source, _, part), name, stem in zip(wanted, names, stems):
        # NOTE: ``a.avi`` and ``a.mov`` in one folder become ``a.avi.mp4`` and ``a.mov.mp4``.
        target, number = stem if count[stem.casefold()] == 1 else name, 1
        while target.casefold() in taken:
            number += 1
            target = f"{name}.{number}"
        taken.add(target.casefold())
        videos.append(Video(source, f"{FOLDER}/{target}.mp4", part))
    return videos
