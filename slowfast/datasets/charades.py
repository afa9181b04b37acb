"""Charades: household activities, several at a time.

Frame lists ``train.csv`` and ``val.csv`` in ``DATA.PATH_TO_DATA_DIR``, whose last column holds the classes of every
frame. A training clip has the classes of the frames from its first to its last one; in validation and testing
(both of ``val.csv``) a clip has all classes of its video. Where the images are not there, the videos ``<id>.mp4`` (or
another suffix) in ``DATA.PATH_PREFIX`` are read as if they had the listed number of frames.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.build import DATASET_REGISTRY, build_clip_options
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.frame_lists import (
    FrameFiles,
    FrameLists,
    FrameRecord,
    build_frame_transform,
    find_frame_list,
    find_videos,
    line_of,
    missing_file,
    read_frame_lists,
    unpack_names,
)
from slowfast.datasets.records import FlatStrings, check_files
from slowfast.datasets.sampling import FrameChoice, View, strided_indices
from slowfast.datasets.sources import VideoInfo

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledFrames(FrameRecord):
    """A video whose frames have classes of their own."""

    rows: np.ndarray  # int32 [T]: for every frame, its row of ``table``
    table: np.ndarray  # bool [U, K]: the sets of classes that occur

    def label_of(self, choice: FrameChoice) -> Tensor:
        """The classes of the frames from the first to the last one of a clip: float32 [K] of 0 and 1."""
        return union(self.rows[int(choice.start) : int(choice.end) + 1], self.table)


def union(rows: np.ndarray, table: np.ndarray) -> Tensor:
    """The classes in any of the ``rows`` of ``table``: float32 [K] of 0 and 1."""
    return torch.from_numpy(table[np.unique(rows)].any(axis=0)).float()


def label_table(texts: list[str], num_classes: int, file: str) -> np.ndarray:
    """Bool [U, K]: the classes that each of the label texts (``"3,14"`` with its quotes) names."""
    table = np.zeros((len(texts), num_classes), dtype=bool)
    for row, text in enumerate(texts):
        for label in filter(None, text.strip('"').split(",")):
            if not label.isdecimal() or int(label) >= num_classes:
                raise ValueError(
                    f"{file}, line {line_of(file, text)}: label {label!r} of {text} is not 0 to {num_classes - 1} "
                    f"(MODEL.NUM_CLASSES={num_classes})"
                )
            table[row, int(label)] = True
    return table


def videos_for_frames(lists: FrameLists, prefix: str = "") -> FlatStrings | None:
    """The videos ``<id>.<suffix>`` in the folder ``prefix``; None without any, or if the first listed image exists."""
    found = find_videos(prefix, lists.ids)
    if not found or os.path.exists(os.path.join(prefix, unpack_names(lists.frames[0])[0])):
        return None
    logger.info("videos in %r (DATA.PATH_PREFIX) are read in place of the listed images", prefix)
    return FlatStrings(found.get(video) or os.path.join(prefix, f"{video}.mp4") for video in lists.ids)


class LabelledFrameRecords(FrameFiles, Sequence[FrameRecord]):
    """Videos whose label is the union over their frames, or with ``clip_labels`` over those of a training clip."""

    def __init__(
        self,
        lists: FrameLists,
        table: np.ndarray,
        prefix: str = "",
        *,
        clip_labels: bool = False,
        videos: FlatStrings | None = None,
    ) -> None:
        super().__init__(lists, prefix, videos=videos)
        self._starts, self._texts, self._table = lists.starts, lists.texts, table
        self._clip_labels = clip_labels

    def __getitem__(self, index: int) -> FrameRecord:
        rows = self._texts[self._starts[index] : self._starts[index + 1]]
        whole = self.path(index), union(rows, self._table), self.files(index)
        return LabelledFrames(*whole, rows, self._table) if self._clip_labels else FrameRecord(*whole)


@dataclass(frozen=True)
class StrideRule:
    """Every ``stride``-th frame: from a random one, or from one that the view decides."""

    num_frames: int
    stride: int
    max_stride: int = 0  # random clips: the stride is drawn from [stride, max_stride]

    def __call__(self, info: VideoInfo, view: View | None, rng: np.random.Generator | None) -> FrameChoice:
        """The frames of one clip."""
        stride = self.stride
        if view is None and self.max_stride > stride:
            stride = int(rng.integers(stride, self.max_stride, endpoint=True))
        indices = strided_indices(info.num_frames, self.num_frames, stride, view, rng)
        return FrameChoice(indices, float(indices[0]), float(indices[-1]))


@DATASET_REGISTRY.register()
class Charades(ClipDataset):
    """Clips of Charades with several labels each. Temporal views are spread evenly; a single one lies in the middle."""

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> Charades:
        """The data set of ``split``, its frame list checked."""
        data = cfg.DATA
        if not data.MULTI_LABEL:
            raise ValueError(
                "DATA.MULTI_LABEL=False: a clip of Charades has several labels; set it to True, MODEL.LOSS_FUNC to "
                "bce_logit, MODEL.HEAD_ACT to sigmoid and DATA.ENSEMBLE_METHOD to max"
            )
        transform, options = build_frame_transform(cfg, split), build_clip_options(cfg, split)
        file = find_frame_list(data.PATH_TO_DATA_DIR, split)
        if file is None:
            name = "train.csv" if split == "train" else "val.csv"
            raise missing_file(f"{data.PATH_TO_DATA_DIR}/{name}", "frame list")
        lists = read_frame_lists(file)
        table = label_table(lists.known_texts, cfg.MODEL.NUM_CLASSES, file)
        videos = videos_for_frames(lists, data.PATH_PREFIX)
        records = LabelledFrameRecords(lists, table, data.PATH_PREFIX, clip_labels=split == "train", videos=videos)
        check_files(records, file, may_miss=split != "test" or cfg.TEST.SKIP_BAD_VIDEOS, prefix=data.PATH_PREFIX)
        logger.info("%s: %d videos, %d frames", file, len(lists), len(lists.texts))
        rule = StrideRule(data.NUM_FRAMES, data.SAMPLING_RATE, cfg.MULTIGRID.LONG_CYCLE_SAMPLING_RATE)
        return cls(records, rule, transform, decode_scaled=False, **options)
