"""Masked pre-training: predict what was hidden of a clip; judged by the error of that, as there are no labels."""

from typing import Any

import torch
from torch import Tensor, nn

from slowfast.evaluation.metrics import MeanLoss, Metric
from slowfast.models.masked import masks_of
from slowfast.tasks.base import TASK_REGISTRY, StepResult, Task
from slowfast.tasks.losses import multi_mse


@TASK_REGISTRY.register()
class Masked(Task):
    """Mean squared error over hidden tokens, of one or several predictions.

    Validation and testing give the same error on their split. Where the network draws masks, that of an evaluated clip
    depends on its row alone, so that two evaluations differ by the weights and not by the masks.
    """

    @classmethod
    def from_cfg(cls, cfg) -> "Masked":
        """Checks that the other sections fit."""
        if cfg.MODEL.MODEL_NAME != "MaskMViT":
            raise ValueError(
                f"MASK.ENABLE=True with MODEL.MODEL_NAME={cfg.MODEL.MODEL_NAME!r}: pre-training needs MaskMViT; for "
                "fine-tuning set MASK.ENABLE False"
            )
        if cfg.MODEL.LOSS_FUNC != "multi_mse":
            raise ValueError(f"MODEL.LOSS_FUNC={cfg.MODEL.LOSS_FUNC!r} with MASK.ENABLE: it has to be multi_mse")
        if cfg.MIXUP.ENABLE:
            raise ValueError("MIXUP.ENABLE mixes labelled clips, and pre-training uses no labels: switch it off")
        if not cfg.MASK.MAE_RND_MASK and not cfg.AUG.GEN_MASK_LOADER:
            raise ValueError(
                "nothing makes masks: set AUG.GEN_MASK_LOADER True (blocks, from the data set) or MASK.MAE_RND_MASK "
                "True (drawn by the network)"
            )
        return cls()

    def loss(self, model: nn.Module, batch: Any, epoch: float) -> StepResult:
        """The weighted sum over predictions; ``loss_0``, ``loss_1``, .. are the errors of each."""
        total, parts = multi_mse(*model(batch.clips, batch.mask))
        return StepResult(total, parts={f"loss_{i}": part.detach() for i, part in enumerate(parts)})

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of the batch, once for each clip: [B]."""
        devices = [batch.clips.device] if batch.clips.is_cuda else []
        with torch.random.fork_rng(devices), masks_of(batch.index):
            torch.manual_seed(int(batch.index[0]))
            total, _ = multi_mse(*model(batch.clips, batch.mask))
        return total.expand(len(batch.clips))

    def metric(self, split: str, dataset: Any) -> Metric:
        """The mean loss over the clips of any split."""
        return MeanLoss()
