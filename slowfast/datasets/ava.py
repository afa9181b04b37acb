"""AVA, and boxes of one's own: clips around key frames, with the people (or things) in them and what each does.

``AVA.ANNOTATION_DIR`` holds the box lists, ``AVA.FRAME_LIST_DIR`` the frame lists, ``AVA.FRAME_DIR`` the images; or
``AVA.FRAME_DIR`` holds videos ``<name>.<suffix>``, with or without frame lists. A row of the data set is one key
frame. Training looks at the true boxes and those of ``AVA.TRAIN_PREDICT_BOX_LISTS``, validation and testing at the
predicted ones of ``AVA.TEST_PREDICT_BOX_LISTS``.

The rate of the frames and the second at which they begin are ``AVA.FRAME_RATE`` and ``AVA.FIRST_SECOND``; nothing
else about seconds, frames or classes is assumed.
"""

from __future__ import annotations

import csv
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.utils.data import Dataset

from slowfast.datasets.batch import BadVideo, Request, Sample
from slowfast.datasets.build import DATASET_REGISTRY
from slowfast.datasets.clips import MAX_TRIES
from slowfast.datasets.containment import watched
from slowfast.datasets.frame_lists import FrameFiles, FrameLists, find_videos, read_frame_lists, unpack_names
from slowfast.datasets.records import VIDEO_SUFFIXES, FlatStrings, contents, some
from slowfast.datasets.sampling import centered_indices
from slowfast.datasets.sources import ClipSource, DecodeError, FrameList, open_source
from slowfast.datasets.transforms.boxes import BoxTransform, build_box_transform
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

VALIDATION_PERIOD = 4  # seconds between the key frames of validation, unless AVA.FULL_TEST_ON_VAL


# ------------------------------ annotation ------------------------------


class BoxLists:
    """The boxes of key frames, from any number of files; boxes given twice become one with the labels of both."""

    def __init__(self) -> None:
        # (video, second) -> corners as they are written -> class ids
        self.boxes: dict[tuple[str, float], dict[tuple[str, ...], list[int]]] = {}

    def read(self, file: str, *, min_score: float | None = None, num_classes: int | None = None) -> None:
        """Add a file of rows ``video, second, x1, y1, x2, y2, class id, ...``; the class id may be empty.

        The eighth column of detected boxes, read if ``min_score`` is given, is the detector's score: boxes below it
        are left out. Without that column they count as certain. ``ValueError`` names the line that cannot be read.
        """
        highest = math.inf if num_classes is None else num_classes
        with pathmgr.open(file, "r", encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), start=1):
                if not row:
                    continue
                try:
                    video, second, *corners, label = row[:7]
                    if min_score is not None and len(row) > 7 and float(row[7]) < min_score:
                        continue
                    class_id = int(label) if label.strip() else None
                    key, box = (video, float(second)), tuple(map(str.strip, corners))
                    if not all(map(math.isfinite, (key[1], *map(float, box)))) or len(box) != 4:
                        raise ValueError("a number is not finite")
                except ValueError as error:
                    raise ValueError(
                        f"{file}, line {number}: {','.join(row)!r} is not video, second, x1, y1, x2, y2, class id "
                        f"(a number or nothing)[, score]: {error}"
                    ) from error
                if class_id is not None and not 1 <= class_id <= highest:
                    raise ValueError(
                        f"{file}, line {number}: class id {class_id} is not 1 to {num_classes} "
                        f"(MODEL.NUM_CLASSES={num_classes})"
                    )
                labels = self.boxes.setdefault(key, {}).setdefault(box, [])
                if class_id is not None:
                    labels.append(class_id)

    def videos(self) -> list[str]:
        """Names of videos with boxes, in the order of the files."""
        return list(dict.fromkeys(video for video, _ in self.boxes))


class KeyFrames:
    """Key frames with their boxes, in a few arrays: by video in the order given, then by second."""

    def __init__(self, lists: BoxLists, videos: Sequence[str], *, period: float = 0) -> None:
        """Those of ``videos``; with ``period``, only those at multiples of that many seconds."""
        number = {video: index for index, video in enumerate(videos)}
        keys = [key for key in lists.boxes if key[0] in number and not (period and math.fmod(key[1], period))]
        keys.sort(key=lambda key: (number[key[0]], key[1]))
        boxes = [list(lists.boxes[key].items()) for key in keys]
        self.names = list(videos)
        self.videos = np.array([number[video] for video, _ in keys], dtype=np.int64)  # [N] rows of ``names``
        self.seconds = np.array([second for _, second in keys], dtype=np.float64)  # [N]
        self._starts = np.cumsum([0, *map(len, boxes)])  # [N + 1] of each key frame's boxes
        corners = [corner for group in boxes for box, _ in group for corner in box]
        self._corners = np.array(corners, dtype=np.float64).reshape(-1, 4)  # [R, 4]
        labels = [ids for group in boxes for _, ids in group]
        self._label_starts = np.cumsum([0, *map(len, labels)])  # [R + 1]
        self._labels = np.array([label for ids in labels for label in ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def num_boxes(self) -> int:
        """Boxes in all key frames together."""
        return len(self._corners)

    def boxes(self, row: int) -> Tensor:
        """float64 [R, 4]: x1, y1, x2, y2 of one key frame, fractions of the image."""
        return torch.from_numpy(self._corners[self._starts[row] : self._starts[row + 1]])

    def labels(self, row: int) -> list[list[int]]:
        """Class ids of each box of one key frame."""
        rows = range(self._starts[row], self._starts[row + 1])
        return [self._labels[self._label_starts[r] : self._label_starts[r + 1]].tolist() for r in rows]


def multi_hot(labels: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """Class ids (from 1) of each box -> float32 [R, K] of 0 and 1."""
    table = torch.zeros(len(labels), num_classes)
    for row, ids in enumerate(labels):
        table[row, [id - 1 for id in ids]] = 1
    return table


# ------------------------------ frames ------------------------------


class AtRate:
    """A video as if it had ``fps`` frames per second: of each moment, the frame that is shown."""

    def __init__(self, source: ClipSource, fps: float) -> None:
        info = source.info
        if not fps:
            raise DecodeError(getattr(source, "path", "video"), "its frame rate is unknown; set AVA.FRAME_RATE")
        if info.timeline is not None:
            shown = info.timeline.pts * float(info.timeline.time_base)  # [F] seconds
            self._shown = shown - shown[0]
        elif info.fps:
            self._shown = np.arange(info.num_frames) / info.fps
        else:
            self._shown = np.arange(info.num_frames) / fps
        self._source = source
        length = self._shown[-1] + (self._shown[-1] / max(len(self._shown) - 1, 1) or 1 / fps)  # the last one's too
        self.info = replace(info, num_frames=max(1, round(length * fps)), fps=fps, timeline=None)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        """The frames at ``indices``: uint8 [T, H, W, 3], RGB."""
        return self._source.read(self.source_indices(indices))

    def source_indices(self, indices: Sequence[int] | Tensor) -> np.ndarray:
        """The frames of the video itself that stand for ``indices``: those shown in the middle of each moment."""
        middle = (np.asarray(indices, dtype=np.int64) + 0.5) / self.info.fps
        return np.searchsorted(self._shown, middle + 1e-9, side="right") - 1


@dataclass(frozen=True)
class KeyFrameRecord:
    """One key frame: a video (or the folder of its images), a second, and the boxes there."""

    path: str
    video: str
    second: float
    boxes: Tensor  # float64 [R, 4]: x1, y1, x2, y2, fractions of the image
    labels: list[list[int]]  # class ids of each box, from 1
    files: Sequence[str] | None = None  # the images, where the video is not one file
    fps: float = 30.0  # of the images; 0: as the video says
    first_second: float = 0.0
    upright: bool = True  # a video that is marked as turned

    def open(self) -> ClipSource:
        """The frames, at the rate of the record."""
        if self.files is not None:
            return FrameList(self.files, path=self.path)
        source = open_source(self.path, upright=self.upright)
        return AtRate(source, self.fps or source.info.fps or 0)

    def frame(self, source: ClipSource) -> int:
        """The index of the key frame; ``DecodeError`` if it lies outside of a video file."""
        fps = source.info.fps or self.fps
        index = round((self.second - self.first_second) * fps)
        if self.files is None and not 0 <= index < source.info.num_frames + fps:
            begins, seconds = self.first_second, source.info.num_frames / fps
            raise DecodeError(
                self.path,
                f"second {self.second:g} lies outside of the video, which goes from {begins:g} "
                f"(AVA.FIRST_SECOND) to {begins + seconds:g}",
            )
        return index


class KeyFrameRecords(Sequence[KeyFrameRecord]):
    """Records of ``key_frames``; ``frames`` has the images or the video file of each of its ``names``."""

    def __init__(
        self,
        key_frames: KeyFrames,
        frames: FrameFiles | FlatStrings,
        *,
        fps: float,
        first_second: float,
        upright: bool = True,
    ) -> None:
        self.key_frames = key_frames
        self.frames = frames
        self.fps, self.first_second, self.upright = fps, first_second, upright

    def __len__(self) -> int:
        return len(self.key_frames)

    def __getitem__(self, row: int) -> KeyFrameRecord:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        table, frames = self.key_frames, self.frames
        video = int(table.videos[row])
        path = frames.path(video) if isinstance(frames, FrameFiles) else frames[video]
        is_file = path.lower().endswith(VIDEO_SUFFIXES)
        return KeyFrameRecord(
            path=path,
            video=table.names[video],
            second=float(table.seconds[row]),
            boxes=table.boxes(row),
            labels=table.labels(row),
            files=None if is_file else frames.files(video),
            fps=self.fps,
            first_second=self.first_second,
            upright=self.upright,
        )


# ------------------------------ data set ------------------------------


@DATASET_REGISTRY.register()
class Ava(Dataset):
    """Clips around key frames, with boxes. A row is a key frame; there is one view of each.

    A training clip that cannot be decoded is replaced by one drawn from (seed, epoch, row, attempt) and reported in
    ``Sample.bad``. Otherwise ``DecodeError``, or with ``skip_bad`` a sample without a clip.

    With ``as_bytes`` set, as a loader does, clips are normalised later, by ``Batch.to``.
    """

    num_views = num_clips = num_crops = 1

    def __init__(
        self,
        records: Sequence[KeyFrameRecord],
        transform: BoxTransform,
        *,
        num_frames: int,
        stride: int,
        num_classes: int,
        train: bool = False,
        seed: int = 0,
        skip_bad: bool = False,
        period: float = 0,
    ) -> None:
        self.records = records
        self.transform = transform
        self.num_frames, self.stride = num_frames, stride
        self.num_classes = num_classes
        self.train = train
        self.seed = seed
        self.skip_bad = skip_bad
        self.period = period  # seconds between the key frames that were kept; 0 if all were
        self.as_bytes = False
        self._held: tuple[str, ClipSource] | None = None  # the video read last: neighbours often share it

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> Ava:
        """The data set of ``split``, its lists checked."""
        ava, test = cfg.AVA, cfg.TEST
        period = VALIDATION_PERIOD if split == "val" and not ava.FULL_TEST_ON_VAL else 0
        lists = build_box_lists(cfg, split)
        records = build_records(cfg, split, lists, period)
        if period and not len(records) and lists.boxes:
            logger.warning("no key frame lies at a multiple of %d s: all are validated (AVA.FULL_TEST_ON_VAL)", period)
            period, records = 0, build_records(cfg, split, lists, 0)
        if not len(records):
            raise ValueError(f"{split}: no box is left (AVA.DETECTION_SCORE_THRESH={ava.DETECTION_SCORE_THRESH})")
        if cfg.AUG.ENABLE and split == "train":
            logger.warning("AUG.ENABLE does not act on clips with boxes; see AVA.TRAIN_USE_COLOR_AUGMENTATION")
        table = records.key_frames
        logger.info("%s: %d key frames of %d videos, %d boxes", split, len(table), len(table.names), table.num_boxes)
        return cls(
            records,
            build_box_transform(cfg, split),
            num_frames=cfg.DATA.NUM_FRAMES,
            stride=cfg.DATA.SAMPLING_RATE,
            num_classes=cfg.MODEL.NUM_CLASSES,
            train=split == "train",
            seed=cfg.RNG_SEED,
            skip_bad=split == "val" or test.SKIP_BAD_VIDEOS,
            period=period,
        )

    @property
    def key_frames(self) -> list[tuple[str, float]]:
        """Video and second of every row."""
        table = self.records.key_frames
        return [(table.names[video], second) for video, second in zip(table.videos.tolist(), table.seconds.tolist())]

    @property
    def num_videos(self) -> int:
        """Number of rows; the original's name for the length."""
        return len(self)

    def __len__(self) -> int:
        return len(self.records)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_held": None}  # belongs to one process

    def __getitem__(self, request: Request | int) -> Sample:
        if not isinstance(request, Request):
            request = Request(int(request), epoch=0)
        if not 0 <= request.index < len(self):
            raise IndexError(f"row {request.index} of {len(self)}")
        index, seed = request.index, (self.seed, request.epoch, request.index)
        bad: list[BadVideo] = []
        for attempt in range(MAX_TRIES):
            rng = np.random.default_rng(seed if attempt == 0 else (*seed, attempt))
            if attempt:
                index = int(rng.integers(len(self)))
            try:
                return replace(self._sample(index, rng, request.crop_size), bad=tuple(bad))
            except DecodeError as error:
                bad.append(BadVideo(index, error.path, error.reason))
                if self.train:
                    continue
                if self.skip_bad:
                    return Sample(None, torch.zeros(0, self.num_classes), index, bad=tuple(bad))
                hint = "TEST.SKIP_BAD_VIDEOS True leaves such key frames out and reports them"
                raise DecodeError(error.path, f"{error.reason}; {hint}") from error
        tried = "; ".join(f"{video.path}: {video.reason}" for video in bad)
        raise RuntimeError(f"row {request.index}: {MAX_TRIES} videos in a row cannot be decoded ({tried})")

    def _sample(self, index: int, rng: np.random.Generator, crop_size: int | None) -> Sample:
        record = self.records[index]
        with watched(self._row_to_blame(index, record), record.path):
            source = self._open(record)
            indices = centered_indices(record.frame(source), self.num_frames, self.stride, source.info.num_frames)
            frames, normalize, patches = source.read(indices), None, ()
        if self.as_bytes:
            clip, boxes, patches = self.transform.pixels(frames, record.boxes, rng, crop_size=crop_size)
            normalize = self.transform.normalize
        else:
            clip, boxes = self.transform(frames, record.boxes, rng, crop_size=crop_size)
        key_frame = torch.tensor([int(self.records.key_frames.videos[index]), record.second], dtype=torch.float64)
        return Sample(
            clip,
            multi_hot(record.labels, self.num_classes),
            index,
            boxes=boxes,
            image_boxes=record.boxes.float(),
            keyframes=key_frame.expand(len(boxes), 2),
            normalize=normalize,
            patches=patches,
        )

    def _row_to_blame(self, index: int, record: KeyFrameRecord) -> int:
        """The row that counts as bad if ``record`` ends its worker: its own, of a video file the file's first.

        So a file that hangs is waited for once and not at each of its key frames.
        """
        if record.files is not None:
            return index
        videos = self.records.key_frames.videos  # ascending
        return int(np.searchsorted(videos, videos[index]))

    def key_picture(self, row: int) -> tuple[str, int]:
        """Where the image of a key frame is: a file and the number of the frame in it (0 for an image)."""
        record = self.records[row]
        source = self._open(record)
        frame = min(max(record.frame(source), 0), source.info.num_frames - 1)
        if record.files is not None:
            return record.files[frame], 0
        return record.path, int(source.source_indices([frame])[0])

    def _open(self, record: KeyFrameRecord) -> ClipSource:
        if self._held is None or self._held[0] != record.path:
            self._held = None  # closes the last one before the next is opened
            self._held = (record.path, record.open())
        return self._held[1]


def build_box_lists(cfg: CfgNode, split: str) -> BoxLists:
    """The boxes of ``split``: in training the true ones first, then the detected ones; else the detected ones."""
    ava, lists = cfg.AVA, BoxLists()
    keys = ["TRAIN_GT_BOX_LISTS", "TRAIN_PREDICT_BOX_LISTS"] if split == "train" else ["TEST_PREDICT_BOX_LISTS"]
    for key in keys:
        for name in ava[key]:
            file = os.path.join(ava.ANNOTATION_DIR, name)
            if not pathmgr.isfile(file):
                raise _missing(file, f"AVA.{key}", "AVA.ANNOTATION_DIR", ava.ANNOTATION_DIR)
            min_score = ava.DETECTION_SCORE_THRESH if "PREDICT" in key else None
            lists.read(file, min_score=min_score, num_classes=cfg.MODEL.NUM_CLASSES)
    if not lists.boxes:
        listed = ", ".join(f"AVA.{key}={list(ava[key])}" for key in keys)
        raise ValueError(f"{split}: {listed} give no box (AVA.DETECTION_SCORE_THRESH={ava.DETECTION_SCORE_THRESH})")
    return lists


def build_records(cfg: CfgNode, split: str, lists: BoxLists, period: float) -> KeyFrameRecords:
    """The key frames of ``split`` with their frames: listed images, or videos in ``AVA.FRAME_DIR``."""
    ava, wanted = cfg.AVA, lists.videos()
    key = "TRAIN_LISTS" if split == "train" else "TEST_LISTS"
    files = [os.path.join(ava.FRAME_LIST_DIR, name) for name in ava[key]]
    found = find_videos(ava.FRAME_DIR, wanted)
    missing = [file for file in files if not pathmgr.isfile(file)]
    if files and not missing:
        lists_of_frames = merge_frame_lists([read_frame_lists(file, header=None) for file in files])
        names, frames = list(lists_of_frames.ids), FrameFiles(lists_of_frames, ava.FRAME_DIR)
        if found and not os.path.exists(os.path.join(ava.FRAME_DIR, unpack_names(lists_of_frames.frames[0])[0])):
            logger.info("videos in %r (AVA.FRAME_DIR) are read in place of the listed images", ava.FRAME_DIR)
            names = [name for name in names if name in found]
            frames = FlatStrings(found[name] for name in names)
        elif not ava.FRAME_RATE:
            raise ValueError("AVA.FRAME_RATE=0 takes the rate of each video, but images have none: set it")
    elif found:
        names = [name for name in wanted if name in found]
        frames = FlatStrings(found[name] for name in names)
    else:
        where = "AVA.FRAME_LIST_DIR", ava.FRAME_LIST_DIR
        if missing:
            raise _missing(missing[0], f"AVA.{key}", *where)
        raise FileNotFoundError(
            f"AVA.{key} is empty, and {ava.FRAME_DIR!r} (AVA.FRAME_DIR) holds no video named like those of the box "
            f"lists ({some(wanted)}), e.g. {wanted[0]}.mp4"
        )
    _check_videos(wanted, names, may_miss=split != "test" or cfg.TEST.SKIP_BAD_VIDEOS)
    table = KeyFrames(lists, names, period=period)
    if isinstance(frames, FrameFiles):
        _check_images(frames, table, ava.FRAME_RATE, ava.FIRST_SECOND)
    return KeyFrameRecords(
        table, frames, fps=ava.FRAME_RATE, first_second=ava.FIRST_SECOND, upright=cfg.DATA.AUTOROTATE
    )


def merge_frame_lists(parts: list[FrameLists]) -> FrameLists:
    """Several frame lists as one. A video may stand in one of them only."""
    if len(parts) == 1:
        return parts[0]
    ids = [video for part in parts for video in part.ids]
    twice = sorted({video for video in ids if ids.count(video) > 1}) if len(set(ids)) < len(ids) else []
    if twice:
        raise ValueError(f"AVA.TRAIN_LISTS or AVA.TEST_LISTS: {some(twice)} stand in more than one frame list")
    frames = FlatStrings(part.frames[row] for part in parts for row in range(len(part)))
    texts = [np.zeros(count, dtype=np.int32) for part in parts for count in np.diff(part.starts)]
    return FrameLists(ids, frames, texts, ['""'])


def _check_videos(wanted: list[str], names: list[str], *, may_miss: bool) -> None:
    known = set(names)
    missing = [name for name in wanted if name not in known]
    if not missing:
        return
    text = f"{len(missing)} of {len(wanted)} videos of the box lists have no frames: {some(missing)}"
    if not may_miss or len(missing) == len(wanted):
        raise FileNotFoundError(
            f"{text}. Add them to the frame lists (AVA.TRAIN_LISTS, AVA.TEST_LISTS) or as videos to AVA.FRAME_DIR"
            + ("" if len(missing) == len(wanted) else ", or set TEST.SKIP_BAD_VIDEOS True")
        )
    logger.warning(text)


def _check_images(frames: FrameFiles, table: KeyFrames, fps: float, first_second: float) -> None:
    """That the first image exists, and that key frames lie within the lists."""
    for video in np.unique(table.videos)[:1].tolist():
        if not os.path.exists(frames.files(video)[0]):
            raise FileNotFoundError(f"there is no image {frames.files(video)[0]!r}: set AVA.FRAME_DIR to their folder")
    lengths = np.array([len(frames.files(video)) for video in range(len(table.names))])
    index = np.rint((table.seconds - first_second) * fps)
    outside = np.flatnonzero((index < 0) | (index >= lengths[table.videos]))
    if not len(outside):
        return
    row = outside[0]
    name, length = table.names[table.videos[row]], lengths[table.videos[row]]
    text = (
        f"{len(outside)} of {len(table)} key frames lie outside of their frame list, e.g. second "
        f"{table.seconds[row]:g} of {name} is frame {index[row]:.0f} of {length} by "
        f"AVA.FRAME_RATE={fps:g} and AVA.FIRST_SECOND={first_second:g}"
    )
    if len(outside) == len(table):
        raise ValueError(f"{text}: set these two keys to what your lists mean")
    logger.warning("%s; the nearest frame stands in", text)


def _missing(file: str, key: str, folder_key: str, folder: str) -> FileNotFoundError:
    held = f"holds {contents(folder)}" if pathmgr.isdir(folder) else "is no folder"
    return FileNotFoundError(f"there is no {file} ({key}): {folder!r} ({folder_key}) {held}")
