"""Mixup and CutMix: each clip of a batch is blended with its partner, or gets a box of it, and so do the labels.

Zhang et al., https://arxiv.org/abs/1710.09412; Yun et al., https://arxiv.org/abs/1905.04899. The partner of clip i of B
is clip B - 1 - i; the middle one of an odd batch, and a clip alone, is its own partner and stays as it is. Because the
network gets one clip tensor and cuts its pathways itself, every pathway is mixed. Random numbers come from torch's
default generator on the CPU.
"""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Beta

logger = logging.getLogger(__name__)


class Mix(NamedTuple):
    """One draw: the share of a clip itself in its label, and the (top, left, bottom, right) that CutMix replaces."""

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixup:
    """Mixes a batch with probability ``probability``; labels are always made soft.

    The share is drawn from Beta(alpha, alpha): ``alpha`` for mixup, ``cutmix_alpha`` for CutMix, 0 switching
    either off. With both on, a batch gets CutMix with probability ``switch_probability``.
    """

    num_classes: int
    alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if min(self.alpha, self.cutmix_alpha) < 0 or not self.alpha + self.cutmix_alpha:
            raise ValueError(
                f"MIXUP.ALPHA={self.alpha} and MIXUP.CUTMIX_ALPHA={self.cutmix_alpha}: none may be negative and one "
                "must be above 0 (MIXUP.PROB 0 leaves label smoothing alone)"
            )
        shares = {
            "PROB": self.probability,
            "SWITCH_PROB": self.switch_probability,
            "LABEL_SMOOTH_VALUE": self.smoothing,
        }
        for key, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"MIXUP.{key}={value} is not within 0 and 1")

    @classmethod
    def from_cfg(cls, cfg) -> "Mixup":
        """The options of section ``MIXUP``."""
        mixup = cfg.MIXUP
        copies = cfg.AUG.NUM_SAMPLE * cfg.DATA.TRAIN_CROP_NUM_TEMPORAL * cfg.DATA.TRAIN_CROP_NUM_SPATIAL
        if mixup.PROB and copies * (cfg.TRAIN.BATCH_SIZE // max(1, cfg.NUM_GPUS)) == 1:
            logger.warning("MIXUP.ENABLE: with one clip for each process there is no partner to mix it with")
        return cls(
            cfg.MODEL.NUM_CLASSES,
            mixup.ALPHA,
            mixup.CUTMIX_ALPHA,
            mixup.PROB,
            mixup.SWITCH_PROB,
            mixup.LABEL_SMOOTH_VALUE,
        )

    def __call__(self, clips: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed ``clips`` [B, ..., H, W] and soft targets [B, K] of class indices [B]; the clips given stay."""
        mix = self.draw(*clips.shape[-2:])
        return mix_clips(clips, mix), soft_targets(labels, self.num_classes, mix.share, self.smoothing)

    def draw(self, height: int, width: int) -> Mix:
        """How to mix one batch of clips of this size."""
        if torch.rand(()) >= self.probability:
            return Mix(1.0)
        cuts = self.cutmix_alpha > 0
        if cuts and self.alpha > 0:
            cuts = bool(torch.rand(()) < self.switch_probability)
        alpha = torch.tensor(self.cutmix_alpha if cuts else self.alpha, dtype=torch.float64)
        share = Beta(alpha, alpha).sample().item()
        if not cuts:
            return Mix(share)
        center = int(torch.randint(height, ())), int(torch.randint(width, ()))
        return cutmix(share, center, height, width)


def cutmix(share: float, center: tuple[int, int], height: int, width: int) -> Mix:
    """The box around ``center`` (y, x) that leaves about ``share`` of a frame, cut at its edges, and what it leaves."""
    half = [int(side * (1 - share) ** 0.5) // 2 for side in (height, width)]
    top, left = (max(middle - reach, 0) for middle, reach in zip(center, half))
    bottom, right = (min(middle + reach, side) for middle, reach, side in zip(center, half, (height, width)))
    return Mix(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def mix_clips(clips: Tensor, mix: Mix) -> Tensor:
    """Clips [B, ..., H, W] blended with those in reverse order, or with a box of them in every frame."""
    if mix.box is not None:
        top, left, bottom, right = mix.box
        mixed = clips.clone()
        mixed[..., top:bottom, left:right] = clips[..., top:bottom, left:right].flip(0)
        return mixed
    return clips if mix.share == 1 else torch.lerp(clips.flip(0), clips, mix.share)


def soft_targets(labels: Tensor, num_classes: int, share: float = 1.0, smoothing: float = 0.0) -> Tensor:
    """Targets [B, K]: ``share`` of each label of [B] and the rest of its partner's, both smoothed.

    Smoothing spreads its part evenly over all classes.
    """
    hot = F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    return share * hot + (1 - share) * hot.flip(0)


def merge_targets(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [B, K] and class indices [B] that count an answer with either of two mixed classes as right.

    The class of the largest target is the label. Where a second class stands out from the rest (so there must be
    three), its score is added to that of the label and set to 0.
    """
    if targets.shape[1] < 2:
        return scores, targets.argmax(dim=1)
    largest, classes = targets.topk(2, dim=1)
    two = largest[:, 1] > targets.amin(dim=1)
    rows, (first, second) = two.nonzero()[:, 0], classes[two].unbind(1)
    merged = scores.clone()
    merged[rows, first] += scores[rows, second]
    merged[rows, second] = 0
    return merged, classes[:, 0]
