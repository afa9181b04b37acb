"""Contrastive pre-training: several views of a video are to be alike; judged by the nearest neighbours' classes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slowfast.evaluation.ensemble import VideoEnsemble
from slowfast.evaluation.knn import nearest, vote
from slowfast.evaluation.metrics import Metric, TopK, topks_correct
from slowfast.models.contrastive import ContrastiveModel, ContrastiveStep
from slowfast.tasks.base import TASK_REGISTRY, StepResult, Task
from slowfast.utils.distributed import unwrap

logger = logging.getLogger(__name__)


@dataclass
class Part:
    """Some views of a batch, with what all parts of the step share and the sums for the log."""

    step: ContrastiveStep
    views: tuple[int, ...]
    log: "StepLog"


@dataclass
class StepLog:
    """Sums over the parts of one step that are done."""

    loss: Tensor | None = None
    right: Tensor | None = None  # int64 [ks]
    asked: int = 0


@TASK_REGISTRY.register()
class Contrastive(Task):
    """Learn features from views of videos, without their labels.

    With ``sequential``, views go through the network one after another, and each part's gradients are added as soon
    as they are there; the loss in the log is then the sum over parts divided by twice the number of views, as in the
    original. The first ``fill_steps`` steps change no weights but fill the queue. ``num_classes`` are those of the
    labels by which features are judged; 0 judges nothing.
    """

    ks = (1, 5)

    def __init__(self, *, temperature: float, num_classes: int = 0, fill_steps: int = 0, ensemble: str = "sum") -> None:
        self.temperature = temperature
        self.num_classes = num_classes
        self.fill_steps = fill_steps
        self.ensemble = ensemble
        self.labels: Tensor | None = None  # int64 [N], of the training list
        self.evaluates = num_classes > 0

    @classmethod
    def from_cfg(cls, cfg) -> "Contrastive":
        """The method, the queue to fill and the classes to judge by."""
        contrastive = cfg.CONTRASTIVE
        if cfg.MODEL.MODEL_NAME != "ContrastiveModel":
            raise ValueError(
                f"TASK={cfg.TASK!r} with MODEL.MODEL_NAME={cfg.MODEL.MODEL_NAME!r}: pre-training needs a "
                "ContrastiveModel; for fine-tuning choose another TASK, say ssl_eval"
            )
        if cfg.MODEL.LOSS_FUNC != "contrastive_loss":
            raise ValueError(
                f"MODEL.LOSS_FUNC={cfg.MODEL.LOSS_FUNC!r} with a ContrastiveModel: it has to be contrastive_loss"
            )
        if cfg.TRAIN.ACCUMULATION_STEPS > 1:
            raise ValueError(
                f"TRAIN.ACCUMULATION_STEPS={cfg.TRAIN.ACCUMULATION_STEPS} with a ContrastiveModel: keys, queue and key "
                "encoder move once per batch, so parts of one would be another method; set it to 1"
            )
        if cfg.MIXUP.ENABLE:
            raise ValueError("MIXUP.ENABLE mixes labelled clips, and a ContrastiveModel uses no labels: switch it off")
        fill_steps = 0
        if contrastive.TYPE == "moco":
            batch = cfg.TRAIN.BATCH_SIZE * cfg.NUM_SHARDS
            if contrastive.QUEUE_LEN % batch:
                raise ValueError(
                    f"CONTRASTIVE.QUEUE_LEN={contrastive.QUEUE_LEN} is not a multiple of the {batch} clips of a step "
                    "(TRAIN.BATCH_SIZE times NUM_SHARDS)"
                )
            fill_steps = contrastive.QUEUE_LEN // batch
        return cls(
            temperature=contrastive.T,
            num_classes=contrastive.NUM_CLASSES_DOWNSTREAM if contrastive.KNN_ON else 0,
            fill_steps=fill_steps,
            ensemble=cfg.DATA.ENSEMBLE_METHOD,
        )

    def prepare(self, network: ContrastiveModel, training_set: Callable[[], Any]) -> None:
        """Give the network's banks a row for each training video; take the labels."""
        banks = network.banks()
        if not banks:
            return
        records = training_set().records
        for bank in banks:
            if len(bank) != len(records):
                logger.info(f"the bank of features gets {len(records)} rows, one for each training video")
                bank.resize(len(records))
        if self.evaluates:
            labels = getattr(records, "labels", None)
            if labels is None:
                raise ValueError(
                    "CONTRASTIVE.KNN_ON judges features by one label for each training video, which TRAIN.DATASET does "
                    "not have: set CONTRASTIVE.KNN_ON False"
                )
            self.labels = torch.as_tensor(labels)

    def split(self, model: nn.Module, batch: Any) -> Iterator[Part]:
        """The views that are differentiated together, part by part; afterwards queue and banks take in the step.

        Where processes share the gradients, they do so once, in the last part.
        """
        network = unwrap(model)
        if len(batch.clips) < network.min_views:
            raise ValueError(
                f"{len(batch.clips)} view of each video, at least {network.min_views} are needed: raise "
                "DATA.TRAIN_CROP_NUM_TEMPORAL (or DATA.TRAIN_CROP_NUM_SPATIAL)"
            )
        step, log = ContrastiveStep(batch.clips, batch.index), StepLog()
        parts = network.parts(len(batch.clips))
        for number, views in enumerate(parts, start=1):
            alone = number < len(parts) and model is not network and hasattr(model, "no_sync")
            with model.no_sync() if alone else nullcontext():
                yield Part(step, views, log)
        network.finish(step)

    def loss(self, model: nn.Module, batch: Part, epoch: float) -> StepResult:
        """The loss of one part; the log shows that of the step so far, and the errors of finding the right key."""
        part = batch
        if part.step.keys is None:
            unwrap(model).begin(part.step, epoch)
        result = model(part.step, part.views)
        log, count = part.log, 2 * len(part.step.views) if unwrap(model).sequential else 1
        loss = result.total.detach() / count
        log.loss = loss if log.loss is None else log.loss + loss
        errors = {}
        if result.logits is not None:
            first = torch.zeros(len(result.logits), dtype=torch.int64, device=result.logits.device)
            right = topks_correct(result.logits, first, self.ks)
            log.right = right if log.right is None else log.right + right
            log.asked += len(result.logits)
            errors = {f"top{k}_err": 100.0 * (1.0 - n / log.asked) for k, n in zip(self.ks, log.right, strict=True)}
        return StepResult(result.total, parts={"loss": log.loss}, errors=errors)

    def after_backward(self, model: nn.Module, epoch: float, step: int) -> bool:
        """Weights that rest lose their gradients; nothing moves until the queue is full."""
        unwrap(model).drop_gradients(epoch)
        return epoch >= 1 or step >= self.fill_steps

    def predict(self, model: nn.Module, batch: Any) -> Tensor:
        """Votes [B, K] of the nearest training videos."""
        similar, rows = nearest(model(batch.clips), model.knn_mem.features)
        self.labels = self.labels.to(rows.device)
        return vote(similar, self.labels[rows], self.num_classes, self.temperature)

    def metric(self, split: str, dataset: Any) -> Metric:
        """Errors per clip while training; in testing, the merged views of each video."""
        if split == "test":
            return VideoEnsemble(
                num_videos=len(dataset) // dataset.num_views,
                num_views=dataset.num_views,
                num_classes=self.num_classes,
                method=self.ensemble,
            )
        return TopK(self.ks)
