"""Classification: one label per clip, or several (multi-label)."""

from typing import Any

import torch
from torch import Tensor, nn

from slowfast.evaluation.ensemble import VideoEnsemble
from slowfast.evaluation.metrics import MeanAP, Metric, TopK, topks_correct
from slowfast.tasks.base import TASK_REGISTRY, StepResult, Task
from slowfast.tasks.losses import Loss, get_loss
from slowfast.tasks.mixup import Mixup, merge_targets

IMAGENET_1K_CLASSES = 1000  # of ImageNet-22k's, the first ones where ``DATA.IN22k_VAL_IN1K`` is used


@TASK_REGISTRY.register()
class Classification(Task):
    """Predict the class of a clip, or with ``multi_label`` a score for each class on its own.

    With ``mixup``, training clips are mixed and their labels soft. With ``judged``, evaluation in training looks at
    that many of the first classes only.
    """

    ks = (1, 5)

    def __init__(
        self,
        loss: Loss,
        *,
        num_classes: int,
        multi_label: bool = False,
        ensemble: str = "sum",
        mixup: Mixup | None = None,
        judged: int | None = None,
    ) -> None:
        if mixup is not None and multi_label:
            raise ValueError("MIXUP.ENABLE mixes clips of one label each: switch it or DATA.MULTI_LABEL off")
        if judged is not None and (multi_label or judged > num_classes):
            raise ValueError(
                f"DATA.IN22k_VAL_IN1K judges the first {judged} of classes of which a clip has one: unset it where "
                f"DATA.MULTI_LABEL is True or there are fewer (MODEL.NUM_CLASSES={num_classes})"
            )
        self.loss_function = loss
        self.num_classes = num_classes
        self.multi_label = multi_label
        self.ensemble = ensemble
        self.mixup = mixup
        self.judged = judged

    @classmethod
    def from_cfg(cls, cfg) -> "Classification":
        """Loss, class count and merging of views as the configuration says."""
        return cls(
            get_loss(cfg.MODEL.LOSS_FUNC),
            num_classes=cfg.MODEL.NUM_CLASSES,
            multi_label=cfg.DATA.MULTI_LABEL,
            ensemble=cfg.DATA.ENSEMBLE_METHOD,
            mixup=Mixup.from_cfg(cfg) if cfg.MIXUP.ENABLE else None,
            judged=IMAGENET_1K_CLASSES if cfg.DATA.IN22k_VAL_IN1K else None,
        )

    def loss(self, model: nn.Module, batch: Any, epoch: float) -> StepResult:
        """Loss of the batch, with its top-1 and top-5 errors in percent for single labels.

        Of two mixed labels, either counts as right.
        """
        clips, labels = batch.clips, batch.labels
        if self.mixup is not None:
            clips, labels = self.mixup(clips, labels)
        logits = model(clips)  # [B, K]
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the network gives {logits.shape[-1]} outputs for MODEL.NUM_CLASSES={self.num_classes}: in training, "
                "its last map must be as large as the head's window. Make DATA.TRAIN_CROP_SIZE a multiple of 32"
            )
        total = self.loss_function(logits, labels)
        if self.multi_label:
            return StepResult(total)
        with torch.no_grad():
            scores, labels = (logits, labels) if self.mixup is None else merge_targets(logits, labels)
            correct = topks_correct(scores, labels, self.ks)
        errors = {f"top{k}_err": 100.0 * (1.0 - right / len(logits)) for k, right in zip(self.ks, correct, strict=True)}
        return StepResult(total, errors=errors)

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Activated scores [B, K]."""
        return model(batch.clips)

    def metric(self, split: str, dataset: Any) -> Metric:
        """Errors per clip while training; in testing, the merged views of each video."""
        if split == "test":
            return VideoEnsemble(
                num_videos=len(dataset) // dataset.num_views,
                num_views=dataset.num_views,
                num_classes=self.num_classes,
                method=self.ensemble,
                multi_label=self.multi_label,
            )
        return MeanAP(self.num_classes) if self.multi_label else TopK(self.ks, among=self.judged)
