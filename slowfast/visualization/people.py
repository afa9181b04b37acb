"""Who is in a picture: boxes of people by torchvision's Faster R-CNN, and the same person over time."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import box_iou, misc

from slowfast.checkpoint import CheckpointError, load_checkpoint

PERSON = 1  # the class of people in COCO
# By what only one of them has in its file of weights.
_KINDS = {
    "backbone.body.0.0.weight": detection.fasterrcnn_mobilenet_v3_large_fpn,
    "rpn.head.conv.1.0.weight": detection.fasterrcnn_resnet50_fpn_v2,
    "backbone.body.layer1.0.conv1.weight": detection.fasterrcnn_resnet50_fpn,
}
_CLASSES = "roi_heads.box_predictor.cls_score.weight"
_FIRST_NAMES = "rpn.head.conv.weight"  # of the file that torchvision publishes; later ones call it otherwise


class PersonDetector:
    """Boxes of people, best first, with a score of at least ``least_score``."""

    def __init__(self, network: nn.Module, *, least_score: float = 0.9, device: torch.device | str = "cpu") -> None:
        if not 0 <= least_score <= 1:
            raise ValueError(f"a least score of {least_score} (DEMO.DETECTRON2_THRESH) is not within 0 and 1")
        self.network = network.eval().to(device)
        self.network.roi_heads.score_thresh = least_score  # those below need not be sorted out
        self.least_score = least_score
        self.device = torch.device(device)

    @classmethod
    def from_file(cls, path: str | os.PathLike, **options) -> PersonDetector:
        """Of weights of one of torchvision's Faster R-CNNs (ResNet-50 FPN, its v2, or MobileNetV3), told apart by name.

        Class 1 is taken for people, as in COCO. ``ValueError`` where the file is something else.
        """
        return cls(load_detector(path), **options)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[np.ndarray]) -> list[tuple[Tensor, Tensor]]:
        """Boxes (fractions of the picture, [R, 4]) and scores [R] for each picture (RGB, uint8 [H, W, 3])."""
        images = [torch.from_numpy(picture).to(self.device).permute(2, 0, 1) / 255 for picture in pictures]
        found = []
        for image, output in zip(images, self.network(images)):
            kept = (output["labels"] == PERSON) & (output["scores"] >= self.least_score)
            height, width = image.shape[1:]
            corners = output["boxes"][kept].double().cpu() / torch.tensor([width, height, width, height])
            found.append((corners.clamp(0, 1), output["scores"][kept].float().cpu()))
        return found


def load_detector(path: str | os.PathLike) -> nn.Module:
    """The detector whose weights are in a file."""
    try:
        state = load_checkpoint(os.fspath(path))["model_state"]
    except CheckpointError as error:
        raise ValueError(f"no detector can be read: {error}") from error
    kind = next((build for name, build in _KINDS.items() if name in state), None)
    if kind is None or _CLASSES not in state:
        names = ", ".join(build.__name__ for build in _KINDS.values())
        raise ValueError(f"{path} holds the weights of none of torchvision's {names}")
    network = kind(weights=None, weights_backbone=None, num_classes=len(state[_CLASSES]))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit torchvision's {kind.__name__}: {error}") from error
    if _FIRST_NAMES in state:
        _set_eps(network, 0.0)
    return network


def _set_eps(network: nn.Module, eps: float) -> None:
    """Give every batch norm ``eps``: the published weights were trained with 0."""
    for module in network.modules():
        if isinstance(module, misc.FrozenBatchNorm2d | nn.BatchNorm2d):
            module.eps = eps


class PersonLinks:
    """The same number for the same person: boxes that overlap from one key frame to the next, the most first.

    Whoever is not seen is remembered for ``memory`` key frames.
    """

    def __init__(self, *, least_overlap: float = 0.3, memory: int = 3) -> None:
        self.least_overlap, self.memory = least_overlap, memory
        self._number = 0
        self._boxes = torch.zeros(0, 4, dtype=torch.float64)
        self._people: list[int] = []
        self._unseen: list[int] = []

    def __call__(self, boxes: Tensor) -> list[int]:
        """A number from 1 for each of ``boxes`` [R, 4] of the next key frame."""
        boxes = boxes.double()
        overlaps = box_iou(boxes, self._boxes)
        numbers: dict[int, int] = {}
        taken: set[int] = set()
        for place in overlaps.flatten().argsort(descending=True, stable=True).tolist():
            row, column = divmod(place, len(self._people))
            if overlaps[row, column] < self.least_overlap:
                break
            if row not in numbers and column not in taken:
                numbers[row] = self._people[column]
                taken.add(column)
        for row in range(len(boxes)):
            if row not in numbers:
                self._number += 1
                numbers[row] = self._number
        people = [numbers[row] for row in range(len(boxes))]
        absent = [c for c in range(len(self._people)) if c not in taken and self._unseen[c] + 1 < self.memory]
        self._unseen = [0] * len(people) + [self._unseen[c] + 1 for c in absent]
        self._boxes = torch.cat([boxes, self._boxes[absent]])
        self._people = people + [self._people[c] for c in absent]
        return people
