"""Detection: for each box around a key frame, which actions it shows; any number at a time.

The boxes are given (true ones, or those of a person detector); what is learnt is what happens in them. Whether boxes
and actions are right together is judged by frame mAP, as for AVA.
"""

import logging
import os
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.evaluation.ava import FrameMAP, GroundTruth, read_label_map
from slowfast.evaluation.metrics import Metric
from slowfast.tasks.base import TASK_REGISTRY, StepResult, Task
from slowfast.tasks.losses import binary_cross_entropy
from slowfast.utils.files import pathmgr

logger = logging.getLogger(__name__)


@TASK_REGISTRY.register()
class Detection(Task):
    """Several yes/no per box on activated scores; ``truth`` is what validation and testing are compared with."""

    def __init__(self, truth: GroundTruth, *, num_classes: int) -> None:
        highest = max(truth.class_names)
        if highest > num_classes:
            raise ValueError(
                f"AVA.LABEL_MAP_FILE names class id {highest}, but MODEL.NUM_CLASSES={num_classes}: set it to {highest}"
            )
        self.truth = truth
        self.num_classes = num_classes

    @classmethod
    def from_cfg(cls, cfg) -> "Detection":
        """The ground truth that section ``AVA`` names.

        Without ``AVA.LABEL_MAP_FILE``, all of ``MODEL.NUM_CLASSES`` are judged and go by their numbers.
        """
        if cfg.MODEL.LOSS_FUNC != "bce":
            raise ValueError(
                f"MODEL.LOSS_FUNC={cfg.MODEL.LOSS_FUNC!r} with DETECTION.ENABLE: the head for boxes gives activated "
                "scores in training too, for which bce is the loss; set it to bce"
            )
        if cfg.MIXUP.ENABLE:
            raise ValueError("MIXUP.ENABLE with DETECTION.ENABLE: boxes cannot be mixed; set MIXUP.ENABLE False")
        ava = cfg.AVA
        files = {}
        for key in ("GROUNDTRUTH_FILE", "LABEL_MAP_FILE", "EXCLUSION_FILE"):
            files[key] = os.path.join(ava.ANNOTATION_DIR, ava[key]) if ava[key] else ""
            if files[key] and not pathmgr.isfile(files[key]):
                optional = "" if key == "GROUNDTRUTH_FILE" else f"; without such a file set AVA.{key} ''"
                raise FileNotFoundError(f"there is no {files[key]} (AVA.ANNOTATION_DIR and AVA.{key}){optional}")
        if not files["GROUNDTRUTH_FILE"]:
            raise ValueError(
                "AVA.GROUNDTRUTH_FILE is empty: set it to the csv of true boxes for validation and testing"
            )
        numbers = {id: str(id) for id in range(1, cfg.MODEL.NUM_CLASSES + 1)}
        names = read_label_map(files["LABEL_MAP_FILE"]) if files["LABEL_MAP_FILE"] else numbers
        truth = GroundTruth.read(files["GROUNDTRUTH_FILE"], names, files["EXCLUSION_FILE"])
        if max(names) < cfg.MODEL.NUM_CLASSES:
            logger.warning(
                "AVA.LABEL_MAP_FILE names ids up to %d: of MODEL.NUM_CLASSES=%d, the outputs beyond are never judged",
                max(names),
                cfg.MODEL.NUM_CLASSES,
            )
        if not truth.key_frames:
            raise ValueError(f"{files['GROUNDTRUTH_FILE']} holds no box of the classes of AVA.LABEL_MAP_FILE")
        return cls(truth, num_classes=cfg.MODEL.NUM_CLASSES)

    def loss(self, model: nn.Module, batch: Any, epoch: float) -> StepResult:
        """Binary cross entropy over boxes and classes."""
        scores = self.forward(model, batch)  # within 0..1
        with torch.autocast(scores.device.type, enabled=False):  # refuses this loss in half precision
            return StepResult(binary_cross_entropy(at_least_float(scores), batch.labels))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        """Scores [R, K] of boxes in clips of one size."""
        return model(batch.clips, batch.boxes)

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Scores [R, K] of the boxes of a batch; clips of one size are computed together."""
        if isinstance(batch.clips, Tensor):
            return self.forward(model, batch)
        sizes: dict[tuple[int, ...], list[int]] = {}
        for row, clip in enumerate(batch.clips):
            sizes.setdefault(tuple(clip.shape), []).append(row)
        scores: Tensor | None = None
        owner = batch.boxes[:, 0].long()
        for rows in sizes.values():
            place = owner.new_full((len(batch.clips),), -1)
            place[rows] = torch.arange(len(rows), device=place.device)
            mine = (place[owner] >= 0).nonzero()[:, 0]
            boxes = torch.cat([place[owner[mine]][:, None].to(batch.boxes), batch.boxes[mine, 1:]], dim=1)
            part = model(torch.stack([batch.clips[row] for row in rows]), boxes)
            scores = part.new_zeros(len(owner), part.shape[1]) if scores is None else scores
            scores[mine] = part
        return scores

    def metric(self, split: str, dataset: Any) -> Metric:
        """Frame mAP of the key frames of ``dataset``; of every fourth second alone where it has only these."""
        period = getattr(dataset, "period", 0)
        return FrameMAP(self.truth.every(period) if period else self.truth, dataset.key_frames, self.num_classes)


def at_least_float(x: Tensor) -> Tensor:
    """``x`` in single precision or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
