"""Who does what in a video: scores of a detection network for the boxes around key frames.

The one idea is that of the classifying predictor: the frames around a key frame, their scaling and what happens to
the boxes are those of a test on AVA lists, so for the same boxes the scores are the same.
"""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from slowfast.checkpoint import build_test_plan, carry_out
from slowfast.config import load_cfg
from slowfast.datasets.ava import BoxLists
from slowfast.datasets.transforms.boxes import BoxTransform, build_box_transform
from slowfast.models import build_model
from slowfast.models.fold import for_inference
from slowfast.utils.files import pathmgr
from slowfast.visualization.class_names import build_box_class_names
from slowfast.visualization.live import LiveClip, Moment, read_pictures, shown_at
from slowfast.visualization.people import PersonDetector
from slowfast.visualization.predictor import Guess, best_classes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoxPrediction:
    """Scores of the people around one key frame."""

    start_s: float
    end_s: float
    key_s: float
    boxes: Tensor  # float64 [R, 4]: x1, y1, x2, y2, fractions of the picture
    box_scores: Tensor  # float32 [R]: how certain the detector was
    scores: Tensor  # float32 [R, K]
    class_names: Sequence[str]
    people: Sequence[int] = ()  # the number of each person, the same over time

    def top(self, row: int, k: int = 5) -> list[Guess]:
        """The ``k`` best classes of one box, best first."""
        return best_classes(self.scores[row], self.class_names, k)


@dataclass(frozen=True)
class _Look:
    """What the network will see of a key frame."""

    clip: Tensor  # [C, T, h, w]
    picture: np.ndarray  # the key frame, RGB, uint8 [H, W, 3]
    known: tuple[Tensor, Tensor] | None  # boxes and their scores, where they are given


class BoxPredictor:
    """A detection network with everything it needs to be shown a video.

    ``fps`` is the frame rate that the network was trained at, 0 that of each video. Boxes are those that come with a
    key frame, else what ``detector`` finds.
    """

    def __init__(
        self,
        network: nn.Module,
        transform: BoxTransform,
        class_names: Sequence[str],
        *,
        num_frames: int,
        stride: int,
        fps: float = 0.0,
        detector: PersonDetector | None = None,
        device: torch.device | str = "cpu",
        upright: bool = True,
        fold: bool = True,
    ) -> None:
        network.eval().to(device)
        self.network = for_inference(network, in_place=True) if fold else network
        self.transform = transform
        self.class_names = list(class_names)
        self.num_frames, self.stride, self.fps = num_frames, stride, fps
        self.detector = detector
        self.upright = upright  # how videos that are marked as turned are seen
        self.device = torch.device(device)

    @classmethod
    def from_cfg(
        cls,
        cfg,
        checkpoint: str | os.PathLike = "",
        *,
        labels: str | os.PathLike | None = None,
        folders: Sequence[str | os.PathLike] = (),
        detector: PersonDetector | None = None,
        device: torch.device | str | None = None,
    ) -> BoxPredictor:
        """The network, weights and transform that a test of ``cfg`` uses; names: see ``build_box_class_names``."""
        if not cfg.DETECTION.ENABLE:
            raise ValueError("DETECTION.ENABLE False: this network has no scores for boxes")
        plan = build_test_plan(cfg, checkpoint)
        class_names = build_box_class_names(cfg, labels, folders, checkpoint=plan.path or "")
        transform = build_box_transform(cfg, "test")
        network = build_model(cfg)
        carry_out(plan, network)
        return cls(
            network,
            transform,
            class_names,
            num_frames=cfg.DATA.NUM_FRAMES,
            stride=cfg.DATA.SAMPLING_RATE,
            fps=float(cfg.AVA.FRAME_RATE),
            detector=detector,
            device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
            upright=cfg.DATA.AUTOROTATE,
            fold=cfg.MODEL.CONV_BACKEND == "auto",
        )

    @classmethod
    def from_checkpoint(
        cls, config: str | os.PathLike, checkpoint: str | os.PathLike, *, opts: Sequence = (), **options
    ) -> BoxPredictor:
        """From a YAML file and a file of weights; ``opts`` change keys, ``options`` are those of ``from_cfg``."""
        options.setdefault("folders", [Path(config).parent])
        return cls.from_cfg(load_cfg(config, opts), checkpoint, **options)

    # ------------------------------------------------------------ when

    def span_s(self, stream_fps: float) -> float:
        """Seconds that one clip covers."""
        return self.num_frames * self.stride / (self.fps or stream_fps)

    def moments(self, keys: Sequence[GivenBoxes], stream_fps: float) -> list[Moment]:
        """When the network looks at given boxes: as in a test, whole frames at its rate."""
        fps = self.fps or stream_fps
        found = []
        for given in keys:
            frame = round(given.key_s * fps)
            start = frame - self.num_frames * self.stride // 2
            end = start + self.num_frames * self.stride
            found.append(Moment(start / fps, end / fps, (frame + 0.5) / fps, given))
        return found

    # ------------------------------------------------------------ what

    def look(self, clip: LiveClip, stream_fps: float) -> _Look:
        """What the network sees of a clip; done ahead, without the network."""
        fps, moment = self.fps or stream_fps, clip.moment
        start = round(moment.start_s * fps, 3)  # whole where the key frames are given
        numbers = start + np.arange(self.num_frames) * self.stride
        rows = shown_at(clip.shots, (numbers + 0.5) / fps)
        frames = read_pictures(clip.shots, rows)
        seen, _ = self.transform(frames, torch.zeros(0, 4))
        given = moment.known
        return _Look(seen, clip.key.picture(), None if given is None else (given.boxes, given.scores))

    @torch.no_grad()
    def score(self, looks: Sequence[_Look]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes [R, 4], the detector's scores [R], and scores [R, K] for each clip; all clips are of one size."""
        found = [look.known for look in looks]
        unknown = [row for row, boxes in enumerate(found) if boxes is None]
        if unknown and self.detector is None:
            raise ValueError("this network scores boxes: give them, or a detector of people")
        if unknown:
            for row, boxes in zip(unknown, self.detector([looks[row].picture for row in unknown])):
                found[row] = boxes
        rois = []
        for row, (look, (boxes, _)) in enumerate(zip(looks, found)):
            blank = torch.zeros(1, *look.picture.shape, dtype=torch.uint8)
            corners = self.transform(blank, boxes)[1]  # in pixels of the clip
            rois.append(torch.cat([torch.full((len(corners), 1), float(row)), corners], dim=1))
        counts = [len(boxes) for boxes, _ in found]
        scores = torch.zeros(sum(counts), len(self.class_names))
        if sum(counts):
            clips = torch.stack([look.clip for look in looks]).to(self.device, non_blocking=True)
            scores = self.network(clips, torch.cat(rois).to(self.device)).float().cpu()
            if scores.shape != (sum(counts), len(self.class_names)):
                raise ValueError(
                    f"the network gives scores of shape {list(scores.shape)} for {sum(counts)} boxes and "
                    f"{len(self.class_names)} classes (MODEL.NUM_CLASSES)"
                )
        return [(boxes, sure, part) for (boxes, sure), part in zip(found, scores.split(counts))]


# ---------------------------------------------------------------- given boxes


@dataclass(frozen=True)
class GivenBoxes:
    """The boxes of one key frame, as a csv file gives them."""

    key_s: float  # after the first frame
    boxes: Tensor  # float64 [R, 4], fractions
    scores: Tensor  # float32 [R]; 1 where the file has none
    labels: Sequence[Sequence[int]]  # class ids of each box, from 1


def read_given_boxes(
    file: str | os.PathLike,
    video: str,
    *,
    first_second: float,
    min_score: float | None = None,
    num_classes: int | None = None,
) -> list[GivenBoxes]:
    """The boxes that a csv file in the form of AVA has for ``video``, in the order of time.

    ``first_second`` is that of the first frame. A video is named by its file: whole, without its last suffix, or up
    to its first dot. The eighth column is the detector's score where ``min_score`` is given; without, as in lists of
    true boxes, it is something else. ``ValueError`` where the file has no box for it.
    """
    file, path = os.fspath(file), Path(video)
    if not pathmgr.isfile(file):
        raise ValueError(f"{file}: there is no such file of boxes")
    lists = BoxLists()
    lists.read(file, min_score=min_score, num_classes=num_classes)
    named = lists.videos()
    name = next((name for name in (path.name, path.stem, path.name.split(".")[0]) if name in named), None)
    if name is None:
        known = ", ".join(named[:5]) + (", ..." if len(named) > 5 else "")
        above = "" if min_score is None else f" with a score of {min_score:g} or more (AVA.DETECTION_SCORE_THRESH)"
        raise ValueError(f"{file} has no box{above} for {path.stem!r}; its videos are {known or 'none'}")
    found, scores = [], {} if min_score is None else _read_box_scores(file, name, min_score)
    for (_, second), boxes in sorted(item for item in lists.boxes.items() if item[0][0] == name):
        corners = torch.tensor([[float(value) for value in box] for box in boxes], dtype=torch.float64)
        certain = torch.tensor([scores.get((second, box), 1.0) for box in boxes])
        found.append(GivenBoxes(second - first_second, corners, certain, list(boxes.values())))
    inside = [item for item in found if item.key_s >= 0]
    if len(inside) < len(found):
        missed = f"{len(found) - len(inside)} of {len(found)} key frames of {name}"
        logger.warning("%s: %s come before second %g, the first frame", file, missed, first_second)
    return inside


def _read_box_scores(file: str, name: str, min_score: float) -> dict[tuple[float, tuple[str, ...]], float]:
    """The detector's score of each box of a video by second and corners; of those in several rows, the highest.

    Rows from ``min_score`` on have been checked. A number above 1 is no score and left out.
    """
    scores: dict[tuple[float, tuple[str, ...]], float] = {}
    with pathmgr.open(file, "r", encoding="utf-8-sig", newline="") as stream:
        for row in csv.reader(stream):
            if len(row) > 7 and row[0] == name and min_score <= float(row[7]) <= 1:
                key = float(row[1]), tuple(map(str.strip, row[2:6]))
                scores[key] = max(float(row[7]), scores.get(key, 0.0))
    return scores
