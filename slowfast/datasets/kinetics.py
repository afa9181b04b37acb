"""Kinetics and any other videos with one label each.

A list is ``<DATA.PATH_TO_DATA_DIR>/<split>.csv`` without a header: ``path<sep>label``,
``path<sep>anything<sep>label`` or, in all of its lines, ``path`` alone (label 0); labels are numbers, or all of them
names; a path in double quotes may contain the separator. Without lists, class folders are read. Everything is checked
before training starts.
"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from fvcore.common.config import CfgNode

from slowfast.datasets.build import DATASET_REGISTRY, build_clip_options
from slowfast.datasets.clips import CHOOSERS, ClipDataset, RateRule, Record
from slowfast.datasets.folders import has_class_folders, load_class_folders
from slowfast.datasets.records import VIDEO_SUFFIXES, PathLabels, check_files, class_ids, contents
from slowfast.datasets.sampling import ClipSpec
from slowfast.datasets.transforms.presets import build_clip_transform
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

_SEPARATORS = (" ", ",", "\t", ";", "|")
_PATH_WORDS = ("path", "paths", "video", "videos", "video_path", "file", "filename", "file_name", "name", "id", "clip")
_LABEL_WORDS = ("label", "labels", "class", "classes", "class_id", "class_name", "category", "action", "target", "name")


def load_records(file: str, separator: str = " ", prefix: str = "", num_classes: int | None = None) -> PathLabels:
    """The rows of a list file, paths joined to ``prefix`` (absolute ones stay).

    Labels are numbers, or all of them names: then their ids are those of ``class_names.json`` beside the list, else
    their places among the sorted names of ``train.csv``. Blank lines are left out with a warning.
    ``ValueError`` names the line that cannot be read, or whose label is not in [0, num_classes).
    """
    separator = _read_separator(separator)
    rows = _read_rows(file, separator)
    if not rows.paths:
        raise ValueError(f"{file} lists no video")
    alone = next((number for number, label in zip(rows.numbers, rows.labels) if not label), None)
    if alone and _guess_separator(rows.line(alone)) and not os.path.exists(os.path.join(prefix, rows.line(alone))):
        raise ValueError(_separator_message(file, alone, rows.line(alone), separator))
    paths = (os.path.join(prefix, path) for path in rows.paths)
    if rows.are_named():
        number = rows.numbers[0]
        if _is_header(rows.paths[0], rows.labels[0]):
            raise ValueError(f"{file}, line {number} is a header, which a list has not: remove {rows.line(number)!r}")
        if _guess_separator(rows.line(number)) not in (None, separator):
            raise ValueError(_separator_message(file, number, rows.line(number), separator))
        ids = _ids_of_names(rows, separator, num_classes)
        return PathLabels(paths, (ids[name] for name in rows.labels), sorted(ids, key=ids.__getitem__))
    labels = [_number(label) for label in rows.labels]
    for number, label in zip(rows.numbers, labels):
        if label < 0 or (num_classes is not None and label >= num_classes):
            allowed = (
                "0 or more" if num_classes is None else f"0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes})"
            )
            raise ValueError(f"{file}, line {number}: label {label} is not {allowed}: {rows.line(number)!r}")
    return PathLabels(paths, labels)


@dataclass
class _Rows:
    """What a list file says, not yet interpreted; ``labels`` are empty where a path stands alone."""

    file: str
    lines: list[str]
    numbers: list[int]  # of the lines that are rows, from 1
    paths: list[str]
    labels: list[str]

    def line(self, number: int) -> str:
        return self.lines[number - 1].strip()

    def are_named(self) -> bool:
        """Whether the labels are names; ``ValueError`` where some are and some are not."""
        bare = next((row for row, label in enumerate(self.labels) if not label), None)
        other = next((row for row, label in enumerate(self.labels) if label), None)
        if bare is not None and other is not None:
            number = self.numbers[bare]
            raise ValueError(
                f"{self.file}, line {number}: there is no label, as line {self.numbers[other]} has one: "
                f"{self.line(number)!r}"
            )
        named = next((row for row, label in enumerate(self.labels) if not _is_number(label)), None)
        if named is None:
            return False
        counted = next((row for row, label in enumerate(self.labels) if _is_number(label)), None)
        if counted is None:
            return True
        number, other = self.numbers[named], self.numbers[counted]
        header = "; a list has no header: remove that line" if number == 1 else ""
        raise ValueError(
            f"{self.file}, line {number}: label {self.labels[named]!r} is not a number, as that of line {other} is: "
            f"{self.line(number)!r}{header}"
        )


def _is_number(label: str) -> bool:
    """Whether a label is a whole number; spreadsheets and pandas write some as 3.0."""
    return not label or label.isdecimal() or re.fullmatch(r"\s*[+-]?\d+(\.0*)?\s*", label) is not None


def _is_header(path: str, label: str) -> bool:
    """Whether a row names its columns."""
    return not _is_video(path) and os.path.basename(path).lower() in _PATH_WORDS and label.lower() in _LABEL_WORDS


def _number(label: str) -> int:
    return int(label.partition(".")[0] or 0)


def _read_lines(file: str) -> list[str]:
    """The lines of a text file, which is UTF-8 or has names of another encoding in it; ``ValueError`` for others."""
    with pathmgr.open(file, "r", encoding="utf-8-sig", errors="surrogateescape") as stream:
        text = stream.read()
    if "\0" in text:
        utf16 = text.startswith(("\udcff\udcfe", "\udcfe\udcff"))
        raise ValueError(f"{file} is not text" + (" of UTF-8, but of UTF-16: save it as UTF-8" if utf16 else ""))
    return text.split("\n")


def _split_line(line: str, separator: str) -> list[str] | None:
    """Path and label of a line (the path alone where there is no label); None where it cannot be told.

    A path in double quotes may contain the separator, as tables are written. A separator at the end says nothing.
    """
    line = line.strip(" \r\t" if separator.strip() else " \r")
    path, _, label = line.partition(separator)
    if label.isdecimal() and path.strip() and path[0] != '"':  # nearly every line of nearly every list
        return [path.strip(), label]
    if len(separator) == 1 and (line.startswith('"') or f'{separator}"' in line):
        fields = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    else:
        fields = line.split(separator)
        if not separator.strip():  # columns set apart by several spaces
            fields = [field for field in fields if field]
    if len(fields) > 2 and not fields[-1].strip():
        fields.pop()
    # NOTE: what stands between path and label is nobody's concern, unless it is a part of the path or the label's name.
    if not fields[0].strip() or len(fields) > 3 or (len(fields) == 3 and not _is_number(fields[2])):
        return None
    if len(fields) == 3 and _is_video(fields[0] + separator + fields[1]) and not _is_video(fields[0]):
        return None
    return [fields[0].strip(), *(field.strip() for field in fields[1:][-1:])]


def _is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def _read_rows(file: str, separator: str) -> _Rows:
    if not separator:
        raise ValueError("DATA.PATH_LABEL_SEPARATOR is empty: set it to what stands between path and label")
    rows = _Rows(file, _read_lines(file), [], [], [])
    blank = 0
    for number, line in enumerate(rows.lines, start=1):
        if not line.strip():
            blank += number < len(rows.lines)
            continue
        fields = _split_line(line, separator)
        if fields is None:
            raise ValueError(_separator_message(file, number, line.strip(), separator))
        rows.numbers.append(number)
        rows.paths.append(fields[0])
        rows.labels.append(fields[1] if len(fields) > 1 else "")
    if blank:
        logger.warning("%s: %d blank lines are left out", file, blank)
    return rows


def _ids_of_names(rows: _Rows, separator: str, num_classes: int | None):
    """The id of each class name; one that is misspelt or missing in the training list is an error."""
    folder = os.path.dirname(rows.file)
    train = os.path.join(folder, "train.csv")
    names = _read_rows(train, separator).labels if train != rows.file and pathmgr.isfile(train) else rows.labels
    ids = class_ids(names, folder, num_classes)
    for number, name in zip(rows.numbers, rows.labels):
        if name not in ids:
            close = difflib.get_close_matches(name, ids, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{rows.file}, line {number}: {train} has no class {name!r}{hint}")
    return ids


def wrong_lines(file: str, separator: str = " ", num_classes: int | None = None) -> list[tuple[int, str]]:
    """Number and fault of every line of a list that ``load_records`` would stop at."""
    separator = _read_separator(separator)
    lines = enumerate(map(str.strip, _read_lines(file)), start=1)
    rows = [(number, line, _split_line(line, separator)) for number, line in lines if line]
    labels = [fields[1] for _, _, fields in rows if fields is not None and len(fields) > 1]
    named = sum(map(_is_number, labels)) * 2 < len(labels)
    wrong = []
    for number, line, fields in rows:
        label = fields[1] if fields is not None and len(fields) > 1 else ""
        if fields is None or (len(fields) == 1 and _guess_separator(line)):
            wrong.append((number, _separator_message(file, number, line, separator)))
        elif fields is not None and label and number == rows[0][0] and _is_header(fields[0], label):
            wrong.append((number, "a list has no header: remove this line"))
        elif labels and not label:
            wrong.append((number, "there is no label"))
        elif label and _is_number(label) == named:
            wrong.append((number, f"label {label!r} is {'a number, others are names' if named else 'not a number'}"))
        elif not named and not 0 <= _number(label) < (num_classes or float("inf")):
            wrong.append((number, f"label {label} is not 0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes})"))
    return wrong


def _guess_separator(line: str) -> str | None:
    """The separator that would split ``line`` into a path and a label."""
    for separator in _SEPARATORS:
        fields = line.split(separator)
        if 2 <= len(fields) <= 3 and fields[0].strip() and re.fullmatch(r"\s*\d+\s*", fields[-1]):
            return separator
    for separator in _SEPARATORS:
        path, _, label = line.partition(separator)
        if path.lower().endswith(VIDEO_SUFFIXES) and label and separator not in label:
            return separator
    return None


def _separator_message(file: str, number: int, line: str, separator: str) -> str:
    guess = _guess_separator(line)
    remedy = (
        f"is DATA.PATH_LABEL_SEPARATOR {guess!r}?"
        if guess is not None and guess != separator
        else "paths and names that contain the separator need another one (DATA.PATH_LABEL_SEPARATOR)"
    )
    return f"{file}, line {number}: {line!r} is not a path and a label separated by {separator!r}; {remedy}"


def _read_separator(text: str) -> str:
    """The separator that ``DATA.PATH_LABEL_SEPARATOR`` means: backslash and t, as a shell passes it on, is a tab."""
    return text.replace("\\t", "\t")


def find_list(folder: str, split: str) -> str:
    """The list file of ``split``; ``FileNotFoundError`` says what the folder holds instead."""
    file = os.path.join(folder, f"{split}.csv")
    if pathmgr.isfile(file):
        return file
    if not folder:
        raise FileNotFoundError(f"DATA.PATH_TO_DATA_DIR is empty: set it to the folder of {split}.csv")
    if pathmgr.isdir(file):
        raise FileNotFoundError(f"{file} is a folder, not a list (DATA.PATH_TO_DATA_DIR)")
    if not pathmgr.isdir(folder):
        raise FileNotFoundError(f"{file}: there is no folder {folder!r} (DATA.PATH_TO_DATA_DIR)")
    raise FileNotFoundError(f"no {split}.csv in {folder!r} (DATA.PATH_TO_DATA_DIR), which holds {contents(folder)}")


def has_lists(folder: str) -> bool:
    """Whether any split has a list file in ``folder``."""
    return any(pathmgr.isfile(os.path.join(folder, f"{split}.csv")) for split in ("train", "val", "test"))


def build_records(cfg: CfgNode, split: str, *, from_folders: bool = False) -> PathLabels:
    """The videos of ``split``: of its list, or of class folders where there are no lists."""
    data, folder = cfg.DATA, cfg.DATA.PATH_TO_DATA_DIR
    contrastive = cfg.MODEL.MODEL_NAME == "ContrastiveModel"
    num_classes = cfg.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM if contrastive else cfg.MODEL.NUM_CLASSES
    if from_folders or (not has_lists(folder) and os.path.isdir(folder) and has_class_folders(folder)):
        return load_class_folders(folder, split, cfg.RNG_SEED, num_classes)
    file = find_list(folder, split)
    records = load_records(file, data.PATH_LABEL_SEPARATOR, data.PATH_PREFIX, num_classes)
    check_files(records, file, may_miss=split != "test" or cfg.TEST.SKIP_BAD_VIDEOS, prefix=data.PATH_PREFIX)
    if data.LOADER_CHUNK_SIZE:
        logger.info("DATA.LOADER_CHUNK_SIZE is not needed: the whole of %s is held in little memory", file)
    logger.info("%s: %d videos", file, len(records))
    return records


@DATASET_REGISTRY.register()
class Kinetics(ClipDataset):
    """Clips of videos (or frame folders) with one label each, from lists or class folders.

    Train: a random clip. Val: the centre clip, or with ``DATA.VAL_RANDOM_VIEW`` a random one. Test:
    ``TEST.NUM_ENSEMBLE_VIEWS`` clips times ``TEST.NUM_SPATIAL_CROPS`` crops of each video.
    """

    from_folders = False  # True: class folders only, whatever lists there are

    @classmethod
    def build_records(cls, cfg: CfgNode, split: str) -> Sequence[Record]:
        """The videos of ``split``."""
        return build_records(cfg, split, from_folders=cls.from_folders)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> Kinetics:
        """The data set of ``split``, its list and its options checked."""
        data = cfg.DATA
        if data.DECODING_BACKEND not in CHOOSERS:
            raise ValueError(f"DATA.DECODING_BACKEND={data.DECODING_BACKEND!r} is not one of {', '.join(CHOOSERS)}")
        transform, options = build_clip_transform(cfg, split), build_clip_options(cfg, split)
        return cls(
            cls.build_records(cfg, split),
            RateRule(
                ClipSpec(data.NUM_FRAMES, data.SAMPLING_RATE, data.TARGET_FPS),
                data.DECODING_BACKEND,
                use_offset=data.USE_OFFSET_SAMPLING if split == "test" else options["centre"],
                fps_jitter=data.TRAIN_JITTER_FPS if split == "train" else 0.0,
                max_stride=cfg.MULTIGRID.LONG_CYCLE_SAMPLING_RATE,
            ),
            transform,
            decode_scaled=data.DECODING_BACKEND == "torchvision",
            **options,
        )


@DATASET_REGISTRY.register()
class Folders(Kinetics):
    """The same, from class folders even where there are lists."""

    from_folders = True
