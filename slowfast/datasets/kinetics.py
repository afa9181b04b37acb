"""Kinetics and any other list of videos with one label each.

A list is ``<DATA.PATH_TO_DATA_DIR>/<split>.csv`` without a header: ``path<sep>label``,
``path<sep>anything<sep>label`` or ``path`` alone (label 0). It is read and checked before training starts.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from fvcore.common.config import CfgNode

from slowfast.datasets.build import DATASET_REGISTRY
from slowfast.datasets.clips import CHOOSERS, ClipDataset, RateRule, Record
from slowfast.datasets.sampling import ClipSpec
from slowfast.datasets.transforms.presets import EvalTransform, build_clip_transform
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

_SEPARATORS = (" ", ",", "\t", ";", "|")
_SHOWN = 5  # file names shown in a message


class PathLabels(Sequence[Record]):
    """Paths and labels in three flat arrays: small, and shared by all loader workers instead of copied."""

    def __init__(self, paths: Iterable[str], labels: Iterable[int]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])
        self.labels = np.fromiter(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> PathLabels: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            rows = [self[row] for row in range(*index.indices(len(self)))]
            return PathLabels((row.path for row in rows), (row.label for row in rows))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return Record(self.path(index), int(self.labels[index]))

    def path(self, index: int) -> str:
        """The path of one row."""
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]].tobytes())


def load_records(file: str, separator: str = " ", prefix: str = "", num_classes: int | None = None) -> PathLabels:
    """The rows of a list file, paths joined to ``prefix`` (absolute ones stay).

    Blank lines are left out with a warning. ``ValueError`` names the line that cannot be read, or
    whose label is not in [0, num_classes).
    """
    if not separator:
        raise ValueError("DATA.PATH_LABEL_SEPARATOR is empty: set it to what stands between path and label")
    with pathmgr.open(file, "r", encoding="utf-8-sig", errors="surrogateescape") as stream:
        lines = stream.read().split("\n")
    paths, labels, alone, blank = [], [], [], 0
    for number, line in enumerate(lines, start=1):
        line = line.strip(" \r\t" if separator.strip() else " \r")
        if not line:
            blank += number < len(lines)
            continue
        fields = line.split(separator)
        if len(fields) == 1:
            alone.append((number, line))
        try:
            label = int(fields[-1]) if 2 <= len(fields) <= 3 else 0 if len(fields) == 1 else None
        except ValueError:
            label = None
        if label is None:
            raise ValueError(_separator_message(file, number, line, separator))
        if label < 0 or (num_classes is not None and label >= num_classes):
            allowed = (
                "0 or more" if num_classes is None else f"0 to {num_classes - 1} (MODEL.NUM_CLASSES={num_classes})"
            )
            raise ValueError(f"{file}, line {number}: label {label} is not {allowed}: {line!r}")
        paths.append(os.path.join(prefix, fields[0]))
        labels.append(label)
    if not paths:
        raise ValueError(f"{file} lists no video")
    if blank:
        logger.warning("%s: %d blank lines are left out", file, blank)
    for number, line in alone[:1]:
        if _guess_separator(line) and not os.path.exists(os.path.join(prefix, line)):
            raise ValueError(_separator_message(file, number, line, separator))
    return PathLabels(paths, labels)


def _guess_separator(line: str) -> str | None:
    """The separator that would split ``line`` into a path and a label."""
    for separator in _SEPARATORS:
        fields = line.split(separator)
        if 2 <= len(fields) <= 3 and fields[0].strip() and re.fullmatch(r"\s*\d+\s*", fields[-1]):
            return separator
    return None


def _separator_message(file: str, number: int, line: str, separator: str) -> str:
    guess = _guess_separator(line)
    remedy = (
        f"is DATA.PATH_LABEL_SEPARATOR {guess!r}?"
        if guess is not None and guess != separator
        else "paths that contain the separator need another one (DATA.PATH_LABEL_SEPARATOR)"
    )
    return f"{file}, line {number}: {line!r} is not a path and a label separated by {separator!r}; {remedy}"


def find_list(folder: str, split: str) -> str:
    """The list file of ``split``; ``FileNotFoundError`` says what the folder holds instead."""
    file = os.path.join(folder, f"{split}.csv")
    if pathmgr.isfile(file):
        return file
    if not folder:
        raise FileNotFoundError(f"DATA.PATH_TO_DATA_DIR is empty: set it to the folder of {split}.csv")
    if not pathmgr.isdir(folder):
        raise FileNotFoundError(f"{file}: there is no folder {folder!r} (DATA.PATH_TO_DATA_DIR)")
    names = sorted(pathmgr.ls(folder))
    held = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    raise FileNotFoundError(f"no {split}.csv in {folder!r} (DATA.PATH_TO_DATA_DIR), which holds {held or 'nothing'}")


def check_files(records: PathLabels, file: str, *, may_miss: bool, prefix: str = "") -> int:
    """The number of listed videos that do not exist; an error if none does, or if one is not allowed to miss.

    Each folder is listed once, so that long lists are checked in seconds. Paths with a scheme are not checked.
    """
    folders: dict[str, set[str]] = {}
    missing: list[str] = []
    for row in range(len(records)):
        path = records.path(row)
        if "://" in path:
            continue
        folder, name = os.path.split(path.rstrip("/"))
        if folder not in folders:
            folders[folder] = _names_in(folder)
        if name not in folders[folder]:
            missing.append(path)
    if not missing:
        return 0
    shown = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
    count = f"{file}: {len(missing)} of {len(records)} videos do not exist: {shown}"
    if len(missing) == len(records):
        raise FileNotFoundError(f"{count}. {_prefix_hint(missing[0], file, prefix)}")
    if not may_miss:
        raise FileNotFoundError(f"{count}. Remove them from the list, or set TEST.SKIP_BAD_VIDEOS True")
    logger.warning(count)
    return len(missing)


def _names_in(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except OSError:
        return set()


def _prefix_hint(path: str, file: str, prefix: str) -> str:
    beside = os.path.dirname(file)
    listed = os.path.relpath(path, prefix) if prefix else path
    if os.path.exists(os.path.join(beside, listed)):
        return f"Set DATA.PATH_PREFIX to {beside!r}: there they are"
    return f"Paths are joined to DATA.PATH_PREFIX, which is {prefix!r}"


@DATASET_REGISTRY.register()
class Kinetics(ClipDataset):
    """Clips of a list of videos (or frame folders) with one label each.

    Train: a random clip. Val: the centre clip, or with ``DATA.VAL_RANDOM_VIEW`` a random one. Test:
    ``TEST.NUM_ENSEMBLE_VIEWS`` clips times ``TEST.NUM_SPATIAL_CROPS`` crops of each video.
    """

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> Kinetics:
        """The data set of ``split``, its list and its options checked."""
        data = cfg.DATA
        if data.DECODING_BACKEND not in CHOOSERS:
            raise ValueError(f"DATA.DECODING_BACKEND={data.DECODING_BACKEND!r} is not one of {', '.join(CHOOSERS)}")
        transform = build_clip_transform(cfg, split)
        test, centre = split == "test", isinstance(transform, EvalTransform)
        if test and cfg.TEST.NUM_ENSEMBLE_VIEWS < 1:
            raise ValueError(f"TEST.NUM_ENSEMBLE_VIEWS={cfg.TEST.NUM_ENSEMBLE_VIEWS} is not 1 or more")
        contrastive = cfg.MODEL.MODEL_NAME == "ContrastiveModel"
        file = find_list(data.PATH_TO_DATA_DIR, split)
        records = load_records(
            file,
            data.PATH_LABEL_SEPARATOR,
            data.PATH_PREFIX,
            cfg.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM if contrastive else cfg.MODEL.NUM_CLASSES,
        )
        check_files(records, file, may_miss=not test or cfg.TEST.SKIP_BAD_VIDEOS, prefix=data.PATH_PREFIX)
        if data.LOADER_CHUNK_SIZE:
            logger.info("DATA.LOADER_CHUNK_SIZE is not needed: the whole of %s is held in little memory", file)
        logger.info("%s: %d videos", file, len(records))
        return cls(
            records,
            RateRule(
                ClipSpec(data.NUM_FRAMES, data.SAMPLING_RATE, data.TARGET_FPS),
                data.DECODING_BACKEND,
                use_offset=data.USE_OFFSET_SAMPLING if test else centre,
                fps_jitter=data.TRAIN_JITTER_FPS if split == "train" else 0.0,
                max_stride=cfg.MULTIGRID.LONG_CYCLE_SAMPLING_RATE,
            ),
            transform,
            seed=cfg.RNG_SEED,
            views=(cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS) if test else None,
            centre=centre and not test,
            decode_scaled=data.DECODING_BACKEND == "torchvision",
            skip_bad=cfg.TEST.SKIP_BAD_VIDEOS,
            threads=0 if cfg.DATA_LOADER.ENABLE_MULTI_THREAD_DECODE else 1,
            repeat_first=data.DUMMY_LOAD,
        )
