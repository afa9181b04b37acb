"""Something-Something v2: what is done with something; the whole video is one clip.

Annotation in ``DATA.PATH_TO_DATA_DIR``: ``something-something-v2-labels.json`` (template -> id) and
``something-something-v2-{train,validation}.json`` (videos with id and template); for frames also the frame
lists ``train.csv`` and ``val.csv``. Without frame lists the videos ``<id>.webm`` (or another suffix) in
``DATA.PATH_PREFIX`` are read. Testing uses the validation videos.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import LongTensor

from slowfast.datasets.build import DATASET_REGISTRY, build_clip_options
from slowfast.datasets.clips import ClipDataset
from slowfast.datasets.frame_lists import (
    FrameRecords,
    build_frame_transform,
    find_frame_list,
    find_videos,
    missing_file,
    read_frame_lists,
)
from slowfast.datasets.records import PathLabels, check_files, some
from slowfast.datasets.sampling import FrameChoice, View, segment_indices
from slowfast.datasets.sources import VideoInfo
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)

LABELS = "something-something-v2-labels.json"
VIDEOS = {
    "train": "something-something-v2-train.json",
    "val": "something-something-v2-validation.json",
    "test": "something-something-v2-validation.json",
}


def load_annotation(folder: str, split: str, num_classes: int) -> dict[str, int]:
    """Label of every video id of ``split``, in the order of the annotation."""
    labels = _load_json(os.path.join(folder, LABELS), dict)
    for template, label in labels.items():
        if not str(label).isdigit() or int(label) >= num_classes:
            raise ValueError(
                f"{LABELS}: {template!r} has the id {label!r}, which is not 0 to {num_classes - 1} "
                f"(MODEL.NUM_CLASSES={num_classes})"
            )
    file = os.path.join(folder, VIDEOS[split])
    annotation: dict[str, int] = {}
    for video, template in _templates(file, labels):
        if video in annotation:
            raise ValueError(f"{file}: the id {video} is there twice")
        annotation[video] = int(labels[template])
    return annotation


def _templates(file: str, labels: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Id and template of each video; ``ValueError`` for one without, or with a template that has no label."""
    for number, video in enumerate(_load_json(file, list), start=1):
        if not isinstance(video, dict) or not {"id", "template"} <= video.keys():
            raise ValueError(f'{file}, video {number}: {video!r} has no "id" or no "template"')
        if not isinstance(video["template"], str):
            raise ValueError(
                f"{file}, video {number} (id {video['id']}): the template is {video['template']!r}, no text"
            )
        template = video["template"].replace("[", "").replace("]", "")
        if template not in labels:
            close = difflib.get_close_matches(template, labels, n=1)
            hint = f"; the nearest it has is {close[0]!r}" if close else ""
            raise ValueError(f"{file}, video {number} (id {video['id']}): {LABELS} has no template {template!r}{hint}")
        yield str(video["id"]), template


def _load_json(file: str, kind: type) -> Any:
    if not pathmgr.isfile(file):
        raise missing_file(file, "annotation")
    try:
        with pathmgr.open(file, "r", encoding="utf-8-sig") as stream:
            found = json.load(stream)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, kind) or not found:
        raise ValueError(f"{file} is not a JSON {'object' if kind is dict else 'array'} with something in it")
    return found


def frame_records(
    file: str, annotation: Mapping[str, int], prefix: str = "", *, may_miss: bool = False
) -> FrameRecords:
    """The videos of ``annotation`` with their frames of the frame list ``file``; each side must know the other's.

    With ``may_miss`` those that one side lacks are left out, with a warning.
    """
    lists = read_frame_lists(file)
    place = {video: row for row, video in enumerate(lists.ids)}
    without_frames = [video for video in annotation if video not in place]
    without_label = [video for video in lists.ids if video not in annotation]
    kept = [video for video in annotation if video in place]
    if without_frames or without_label:
        message = (
            f"{file} lists {len(lists)} videos, the annotation {len(annotation)}: "
            f"{len(without_frames)} have no frames ({some(without_frames) or 'none'}), "
            f"{len(without_label)} no label ({some(without_label) or 'none'})"
        )
        if not may_miss or not kept:
            raise ValueError(f"{message}. Both files must be of the same release")
        logger.warning("%s: they are left out", message)
    return FrameRecords(lists, [annotation[video] for video in kept], prefix, [place[video] for video in kept])


def video_records(folder: str, annotation: Mapping[str, int]) -> PathLabels:
    """The videos of ``annotation`` as the files ``<id>.<suffix>`` in ``folder``."""
    found = find_videos(folder, annotation)
    paths = (found.get(video) or os.path.join(folder, f"{video}.webm") for video in annotation)
    return PathLabels(paths, annotation.values())


def build_records(cfg: CfgNode, split: str) -> FrameRecords | PathLabels:
    """The videos of ``split``, as frames where there is a frame list."""
    folder, prefix = cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.PATH_PREFIX
    file = find_frame_list(folder, split)
    annotation = load_annotation(folder, split, cfg.MODEL.NUM_CLASSES)
    may_miss = split != "test" or cfg.TEST.SKIP_BAD_VIDEOS
    if file:
        records = frame_records(file, annotation, prefix, may_miss=may_miss)
    else:
        records, file = video_records(prefix, annotation), os.path.join(folder, VIDEOS[split])
        logger.info("no frame list in %s: videos are read from DATA.PATH_PREFIX %r", folder, prefix)
    check_files(records, file, may_miss=may_miss, prefix=prefix)
    logger.info("%s: %d videos", file, len(records))
    return records


@dataclass(frozen=True)
class SegmentRule:
    """One frame of each of ``num_frames`` equal parts: a random one if ``jitter``, else the middle one.

    With ``spread``, the V temporal views of a test take different frames of each part.
    """

    num_frames: int
    jitter: bool = False
    spread: bool = False

    def __call__(self, info: VideoInfo, view: View | None, rng: np.random.Generator | None) -> FrameChoice:
        """The frames of one clip."""
        if view is not None and self.spread:
            indices = spread_segment_indices(info.num_frames, self.num_frames, view)
        else:
            indices = segment_indices(info.num_frames, self.num_frames, rng if self.jitter else None)
        return FrameChoice(indices, float(indices[0]), float(indices[-1]))


def spread_segment_indices(total: int, num_frames: int, view: View) -> LongTensor:
    """One frame [T] of each part for one of V temporal views: the middle of the v-th V-th of the part."""
    edges = np.round((total - 1) / num_frames * np.arange(num_frames + 1)).astype(np.int64)  # half to even
    low, high = edges[:-1], edges[1:]
    return torch.from_numpy(low + (high - low) * (2 * view.clip + 1) // (2 * view.num_clips))


@DATASET_REGISTRY.register()
class Ssv2(ClipDataset):
    """Something-Something v2, from frames or videos.

    All temporal views of a test see the same frames, as in the original; ``DATA.USE_OFFSET_SAMPLING`` spreads them.
    """

    @classmethod
    def from_cfg(cls, cfg: CfgNode, split: str) -> Ssv2:
        """The data set of ``split``, its annotation checked."""
        transform, options = build_frame_transform(cfg, split), build_clip_options(cfg, split)
        spread = cfg.DATA.USE_OFFSET_SAMPLING
        if split == "test" and cfg.TEST.NUM_ENSEMBLE_VIEWS > 1 and not spread:
            logger.warning(
                "the %d temporal views (TEST.NUM_ENSEMBLE_VIEWS) of a video are the same frames: set it to 1, or "
                "DATA.USE_OFFSET_SAMPLING True for different ones",
                cfg.TEST.NUM_ENSEMBLE_VIEWS,
            )
        rule = SegmentRule(cfg.DATA.NUM_FRAMES, jitter=split == "train", spread=spread and split == "test")
        return cls(build_records(cfg, split), rule, transform, decode_scaled=False, **options)
