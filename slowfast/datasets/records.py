"""Annotation in memory: small, shared by all loader workers instead of copied, and checked before training.

The one idea: Python strings and lists cost a worker a private copy as soon as it looks at them, flat arrays do
not. Records are made on demand from a few arrays.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, overload

import numpy as np

from slowfast.datasets.clips import Record
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

CLASS_NAMES_FILE = "class_names.json"
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".ogv"),
)
_SHOWN = 5  # names shown in a message


class FlatStrings(Sequence[str]):
    """Strings (paths, mostly) in one array of bytes."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self._text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]].tobytes())


class PathLabels(Sequence[Record]):
    """Paths with one label each; ``class_names`` where the annotation names its classes."""

    def __init__(self, paths: Iterable[str], labels: Iterable[int], class_names: Sequence[str] | None = None) -> None:
        self._paths = FlatStrings(paths)
        self.labels = np.fromiter(labels, dtype=np.int64)
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> PathLabels: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            rows = [self[row] for row in range(*index.indices(len(self)))]
            return PathLabels((row.path for row in rows), (row.label for row in rows), self.class_names)
        return Record(self._paths[index], int(self.labels[index]))

    def path(self, index: int) -> str:
        """The path of one row."""
        return self._paths[index]


class Paths(Protocol):
    """What ``check_files`` asks of records."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> str:
        """The file or folder of one row."""
        ...


def check_files(records: Paths, file: str, *, may_miss: bool, prefix: str = "") -> int:
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
            folders[folder] = listed_names(folder)
        if name not in folders[folder]:
            missing.append(path)
    if not missing:
        return 0
    count = f"{file}: {len(missing)} of {len(records)} videos do not exist: {some(missing)}"
    if len(missing) == len(records):
        raise FileNotFoundError(f"{count}. {_prefix_hint(missing[0], file, prefix)}")
    if not may_miss:
        raise FileNotFoundError(f"{count}. Remove them from the list, or set TEST.SKIP_BAD_VIDEOS True")
    logger.warning(count)
    return len(missing)


def some(names: Sequence[object]) -> str:
    """The first of ``names``, for a message."""
    return ", ".join(map(str, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def contents(folder: str) -> str:
    """What ``folder`` holds, for a message."""
    names = sorted(pathmgr.ls(folder))
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "nothing"


def listed_names(folder: str) -> set[str]:
    """The names in ``folder``; none where it cannot be listed."""
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


def class_ids(names: Iterable[str], folder: str, num_classes: int | None = None) -> Mapping[str, int]:
    """The id of every class: those of ``<folder>/class_names.json`` where it exists, else ``names`` in sorted order.

    ``ValueError`` where the file cannot be used, lacks one of ``names``, or there are not ``num_classes`` of them.
    """
    names, file = sorted(set(names)), os.path.join(folder, CLASS_NAMES_FILE)
    ids, source = {name: index for index, name in enumerate(names)}, f"{folder!r} names"
    if pathmgr.isfile(file):
        ids, source = _read_class_ids(file), f"{file} names"
        unknown = [name for name in names if name not in ids]
        if unknown:
            raise ValueError(f"{file} lacks {len(unknown)} classes of {folder!r}: {some(unknown)}. Add them to it")
    if num_classes is not None and len(ids) != num_classes:
        named = f"{source} {len(ids)} classes ({some(list(ids))})"
        raise ValueError(f"{named}, but MODEL.NUM_CLASSES={num_classes}: set it to {len(ids)}")
    return ids


def _read_class_ids(file: str) -> dict[str, int]:
    try:
        with pathmgr.open(file, "r", encoding="utf-8-sig") as stream:
            ids = json.load(stream)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise ValueError(f'{file} is not {{"name": id, ...}} with the ids 0, 1, 2, ... each once')
    return {name: int(index) for name, index in ids.items()}
