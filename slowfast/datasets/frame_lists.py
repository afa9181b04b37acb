"""Frame lists: files that name every frame of every video, as Something-Something, Charades and AVA have them.

After a header, a row is five columns separated by white space: the video's id, a number that nobody reads, the
frame's number, the frame's path, and the frame's labels in quotes (``""`` for none). The frames of a video stand in
the order of the file; rows of other videos may come between them.

The one idea: millions of file names are kept as what they are, a pattern and a count.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.records import VIDEO_SUFFIXES, FlatStrings, contents
from slowfast.datasets.sampling import FrameChoice
from slowfast.datasets.sources import ClipSource, FrameList, open_source
from slowfast.datasets.transforms.presets import ClipTransform, build_clip_transform
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

HEADER = ("original_vido_id", "original_video_id")  # the data sets' own spelling, and the right one


@dataclass(frozen=True)
class NumberedNames(Sequence[str]):
    """``count`` names that differ by a running number, made on demand."""

    head: str
    tail: str
    width: int  # of the number, zeros in front included
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < self.count:
            raise IndexError(f"name {index} of {self.count}")
        return f"{self.head}{self.first + int(index):0{self.width}d}{self.tail}"


def pack_names(names: list[str]) -> str:
    """``names`` as one string, short where they are numbered without gaps."""
    parts = re.fullmatch(r"(.*?)(\d+)(\D*)", names[0])
    if parts:
        head, digits, tail = parts.groups()
        first, width = int(digits), len(digits)
        form = f"{head.replace('%', '%%')}%0{width}d{tail.replace('%', '%%')}"
        if names == [form % number for number in range(first, first + len(names))]:
            return "\0".join((head, tail, str(width), str(first), str(len(names))))
    return "\n".join(names)


def unpack_names(packed: str) -> Sequence[str]:
    """What ``pack_names`` was given."""
    if "\0" not in packed:
        return packed.split("\n")
    head, tail, *numbers = packed.split("\0")
    return NumberedNames(head, tail, *map(int, numbers))


class FrameLists:
    """The videos of a frame list in order of their first row: ids, frames, and a label text per frame."""

    def __init__(
        self, ids: Sequence[str], frames: FlatStrings, texts: list[np.ndarray], known_texts: list[str]
    ) -> None:
        self.ids = ids
        self.frames = frames  # packed
        self.starts = np.cumsum([0, *map(len, texts)])  # [N + 1] of each video's frames among all
        self.texts = np.concatenate(texts)  # int32 [F]: index into ``known_texts`` for every frame
        self.known_texts = known_texts

    def __len__(self) -> int:
        return len(self.ids)


def read_frame_lists(file: str, *, header: Sequence[str] | None = HEADER) -> FrameLists:
    """The frame list in ``file``; ``header`` are allowed first words of the first line, None if any will do.

    ``ValueError`` names the line that cannot be read.
    """
    frames: dict[str, str] = {}  # packed
    texts: dict[str, np.ndarray] = {}
    text_ids: dict[str, int] = {}
    for video, names, labels in _runs(file, header):
        codes = np.array([text_ids.setdefault(text, len(text_ids)) for text in labels], dtype=np.int32)
        if video in frames:
            names = [*unpack_names(frames[video]), *names]
            codes = np.concatenate([texts[video], codes])
        frames[video], texts[video] = pack_names(names), codes
    if not frames:
        raise ValueError(f"{file} lists no frame")
    return FrameLists(list(frames), FlatStrings(frames.values()), list(texts.values()), list(text_ids))


def _runs(file: str, header: Sequence[str] | None) -> Iterator[tuple[str, list[str], list[str]]]:
    """Video id, frame paths and label texts of each stretch of rows of the same video."""
    with pathmgr.open(file, "r", encoding="utf-8-sig", errors="surrogateescape") as stream:
        first = stream.readline()
        if header is not None and not first.startswith(tuple(header)):
            raise ValueError(f"{file}, line 1: {first.strip()!r} is not the header, which starts with {header[0]}")
        video, names, labels = None, [], []
        for number, line in enumerate(stream, start=2):
            fields = line.split()
            if len(fields) != 5:
                if not fields:
                    continue
                raise ValueError(
                    f"{file}, line {number}: {len(fields)} columns instead of 5 (id, number, frame, path, labels), "
                    f'separated by white space, labels in quotes like "3,14" or "": {line.strip()!r}'
                )
            if fields[0] != video:
                if names:
                    yield video, names, labels
                video, names, labels = fields[0], [], []
            names.append(fields[3])
            labels.append(fields[4])
        if names:
            yield video, names, labels


def line_of(file: str, text: str) -> int:
    """The number of the first line whose labels are ``text``."""
    with pathmgr.open(file, "r", encoding="utf-8-sig", errors="surrogateescape") as stream:
        return next(number for number, line in enumerate(stream, start=1) if line.split()[4:] == [text])


class Resampled:
    """A source as if it had ``count`` frames, evenly spread over its own: a video for the images made of it."""

    def __init__(self, source: ClipSource, count: int) -> None:
        self._source = source
        self._num_frames = source.info.num_frames
        self.info = replace(source.info, num_frames=count, timeline=None)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The frames shown at ``indices`` of the ``count``: uint8 [T, H, W, 3], RGB."""
        wanted = (2 * np.asarray(indices, dtype=np.int64) + 1) * self._num_frames // (2 * self.info.num_frames)
        return self._source.read(wanted)


@dataclass(frozen=True)
class FrameRecord:
    """One video given as a list of images; see ``Record``. If ``path`` is a video file, that is read instead."""

    path: str
    label: int | Tensor
    files: Sequence[str]

    def open(
        self, *, short_side: int | None = None, threads: int = 1, decoder: str = "pyav", upright: bool = True
    ) -> ClipSource:
        """The listed images, or a video in their place."""
        if self.path.lower().endswith(VIDEO_SUFFIXES):
            source = open_source(self.path, short_side=short_side, threads=threads, decoder=decoder, upright=upright)
            return Resampled(source, len(self.files))
        return FrameList(self.files, short_side=short_side, path=self.path)

    def label_of(self, choice: FrameChoice) -> int | Tensor:
        """The label of the video."""
        return self.label


class FrameFiles:
    """The images of the videos of a frame list. ``rows`` are the videos wanted, in the wanted order.

    With ``videos``, those files are read in place of the images.
    """

    def __init__(
        self,
        lists: FrameLists,
        prefix: str = "",
        rows: Sequence[int] | None = None,
        videos: FlatStrings | None = None,
    ) -> None:
        self._videos = videos
        self._frames = lists.frames
        self._prefix = prefix
        self._rows = np.arange(len(lists)) if rows is None else np.asarray(rows, dtype=np.int64)
        folders = {os.path.dirname(unpack_names(packed)[0]) for packed in lists.frames}
        self._own_folders = len(folders) == len(lists)

    def __len__(self) -> int:
        return len(self._rows)

    def files(self, index: int) -> Sequence[str]:
        """The images of one video."""
        names = unpack_names(self._frames[int(self._rows[index])])
        if isinstance(names, NumberedNames):
            return replace(names, head=os.path.join(self._prefix, names.head))
        return [os.path.join(self._prefix, name) for name in names]

    def path(self, index: int) -> str:
        """The folder of one video, or its first image where several videos share a folder; or the video file."""
        if self._videos is not None:
            return self._videos[int(self._rows[index])]
        first = self.files(index)[0]
        return os.path.dirname(first) if self._own_folders else first


class FrameRecords(FrameFiles, Sequence[FrameRecord]):
    """Videos of a frame list with one label each."""

    def __init__(self, lists: FrameLists, labels: Sequence[int], prefix: str = "", rows: Sequence[int] | None = None):
        super().__init__(lists, prefix, rows)
        self.labels = np.asarray(labels, dtype=np.int64)

    def __getitem__(self, index: int) -> FrameRecord:
        return FrameRecord(self.path(index), int(self.labels[index]), self.files(index))


def find_videos(folder: str, ids: Iterable[str]) -> dict[str, str]:
    """Of the ``ids`` that have a video file ``<id>.<suffix>`` in ``folder``: its path."""
    names = sorted(pathmgr.ls(folder)) if folder and pathmgr.isdir(folder) else []
    named = {os.path.splitext(name)[0]: name for name in names if name.lower().endswith(VIDEO_SUFFIXES)}
    return {video: os.path.join(folder, named[video]) for video in ids if video in named}


def find_frame_list(folder: str, split: str) -> str | None:
    """``train.csv`` or, for both val and test, ``val.csv`` in ``folder``; None where there is none."""
    if not folder:
        raise FileNotFoundError("DATA.PATH_TO_DATA_DIR is empty: set it to the folder of the annotation")
    if not pathmgr.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder!r} (DATA.PATH_TO_DATA_DIR)")
    file = os.path.join(folder, "train.csv" if split == "train" else "val.csv")
    return file if pathmgr.isfile(file) else None


def missing_file(file: str, what: str, remedy: str = "") -> FileNotFoundError:
    """The error for an annotation file that is not there: what it would be, and what there is instead."""
    folder = os.path.dirname(file)
    held = f"{folder!r} (DATA.PATH_TO_DATA_DIR) holds {contents(folder)}"
    return FileNotFoundError(f"there is no {what} {file}; {held}" + (f". {remedy}" if remedy else ""))


def build_frame_transform(cfg: CfgNode, split: str) -> ClipTransform:
    """The recipe of the data sets that the original reads as frames.

    As for video lists, with three differences. The original's frames are BGR until the very end: ``DATA.MEAN`` and
    ``DATA.STD`` are meant in that order, and the network sees BGR unless ``DATA.REVERSE_INPUT_CHANNEL``. Tests scale to
    ``DATA.TEST_CROP_SIZE`` for a single crop too. Random area and aspect need ``AUG.ENABLE``.
    Frames are RGB here, whatever they come from, so all this is said by other values of the same options.
    """
    cfg = cfg.clone()
    cfg.defrost()
    data = cfg.DATA
    data.MEAN, data.STD = data.MEAN[::-1], data.STD[::-1]
    data.REVERSE_INPUT_CHANNEL = not data.REVERSE_INPUT_CHANNEL
    if split == "test":
        data.TRAIN_JITTER_SCALES = [data.TEST_CROP_SIZE] * 2
    if not cfg.AUG.ENABLE:
        data.TRAIN_JITTER_SCALES_RELATIVE, data.TRAIN_JITTER_ASPECT_RELATIVE = [], []
    cfg.freeze()
    return build_clip_transform(cfg, split)
