"""The recipe of each split: from decoded frames to the clip that a network sees.

``build_clip_transform`` reads the configuration once and gives a plain object. Work is done in
the cheapest order that gives the same numbers: crops are taken before 8-bit frames become floats
where nothing is resized, and only what is left after cropping is normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.sampling import View
from slowfast.datasets.transforms import geometry


class ClipTransform(Protocol):
    """Frames (uint8 [T, H, W, 3], RGB) to a clip (float32 [C, T, H, W])."""

    def short_side(self, crop_size: int | None = None) -> int:
        """The short side that frames may be decoded at."""
        ...

    def __call__(
        self,
        frames: Tensor,
        rng: np.random.Generator | None = None,
        *,
        view: View | None = None,
        crop_size: int | None = None,
    ) -> Tensor:
        """The clip; ``rng`` decides what is random, ``view`` which crop a test takes."""
        ...


@dataclass(frozen=True)
class Normalize:
    """8-bit values to (x / 255 - mean) / std, and the channel order that the network expects."""

    mean: Sequence[float]
    std: Sequence[float]
    reverse_channels: bool = False

    def __call__(self, clip: Tensor) -> Tensor:
        """``clip`` [C, T, H, W], uint8 or float of 0..255; gives a new contiguous float32 tensor."""
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None, None] for values in (self.mean, self.std))
        clip = (clip.contiguous() * (1 / (255 * std))).sub_(mean / std)
        return clip.flip(0) if self.reverse_channels else clip


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop and flip. Short-cycle training asks for a smaller ``crop_size`` per clip."""

    normalize: Normalize
    scales: tuple[int, int]
    crop: int
    full_crop: int  # the crop that ``scales`` were chosen for; smaller crops lower the smaller scale
    flip: bool = True
    inverse_scale: bool = False
    area_range: tuple[float, float] | None = None  # both: random area and aspect in place of scale and crop
    aspect_range: tuple[float, float] | None = None

    def short_side(self, crop_size: int | None = None) -> int:
        """The smaller end of the scales, in proportion to the crop."""
        return round(self.scales[0] * (crop_size or self.crop) / self.full_crop)

    def __call__(self, frames, rng=None, *, view=None, crop_size=None) -> Tensor:
        """See ``ClipTransform``."""
        clip = frames.permute(3, 0, 1, 2)  # [T, H, W, C] -> [C, T, H, W]
        height, width = clip.shape[-2:]
        size = crop_size or self.crop
        if self.area_range is not None:
            box = geometry.area_aspect_box(height, width, self.area_range, self.aspect_range, rng)
            clip = geometry.resized_window(geometry.crop(clip, *box)[0], size, size, 0, 0, size)
        else:
            scale = geometry.jittered_size(self.short_side(crop_size), self.scales[1], rng, inverse=self.inverse_scale)
            scaled = geometry.short_side_size(height, width, scale)
            top, left = geometry.random_offsets(*scaled, size, rng)
            if scaled == (height, width):
                clip = geometry.crop(clip, top, left, size, size)[0]
            else:
                clip = geometry.resized_window(clip, *scaled, top, left, size)
        if self.flip:
            clip = geometry.random_flip(clip, rng)[0]
        return self.normalize(clip)


@dataclass(frozen=True)
class EvalTransform:
    """One short side, then the crop of the view: three along the longer side, or the centre."""

    normalize: Normalize
    scale: int
    crop: int

    def short_side(self, crop_size: int | None = None) -> int:
        """The scale: frames decoded at it need no resizing."""
        return self.scale

    def scaled(self, frames: Tensor) -> Tensor:
        """What the crops of one temporal clip share: [C, T, H, W], 8-bit where nothing had to be resized."""
        return _short_side_float(frames.permute(3, 0, 1, 2), self.scale)

    def cropped(self, clip: Tensor, view: View | None = None) -> Tensor:
        """The clip of one view out of what ``scaled`` gave."""
        return self.normalize(geometry.uniform_crop(clip, self.crop, crop_position(view))[0])

    def __call__(self, frames, rng=None, *, view=None, crop_size=None) -> Tensor:
        """See ``ClipTransform``."""
        return self.cropped(self.scaled(frames), view)


def crop_position(view: View | None) -> int:
    """Where a view's crop lies: 0 start, 1 centre, 2 end; a single crop is the centre one."""
    return 1 if view is None or view.num_crops == 1 else view.crop


def _short_side_float(clip: Tensor, size: int) -> Tensor:
    """Scaled in float32; a clip that already has this short side stays 8-bit."""
    if min(clip.shape[-2:]) == size:
        return clip
    return geometry.short_side_scale(clip.contiguous().float(), size)[0]


def build_clip_transform(cfg: CfgNode, split: str) -> TrainTransform | EvalTransform:
    """The recipe of ``split`` (train, val or test) for ordinary video lists.

    Validation sees the centre: short side ``DATA.TRAIN_JITTER_SCALES[0]``, centre crop of
    ``DATA.TRAIN_CROP_SIZE``, no flip; with ``DATA.VAL_RANDOM_VIEW`` it is scaled, cropped and flipped like
    training. A test with several crops scales the short side to ``DATA.TEST_CROP_SIZE``, one with a single
    (centre) crop to ``DATA.TRAIN_JITTER_SCALES[0]``.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} is not one of train, val, test")
    data, aug = cfg.DATA, cfg.AUG
    _refuse({"AUG.GEN_MASK_LOADER": aug.GEN_MASK_LOADER})
    normalize = Normalize(tuple(data.MEAN), tuple(data.STD), data.REVERSE_INPUT_CHANNEL)
    low, high = data.TRAIN_JITTER_SCALES
    if split == "test":
        if not 1 <= cfg.TEST.NUM_SPATIAL_CROPS <= 3:
            raise ValueError(f"TEST.NUM_SPATIAL_CROPS={cfg.TEST.NUM_SPATIAL_CROPS} is not 1, 2 or 3")
        scale = data.TEST_CROP_SIZE if cfg.TEST.NUM_SPATIAL_CROPS > 1 else low
        _check_crop("DATA.TEST_CROP_SIZE", data.TEST_CROP_SIZE, scale)
        return EvalTransform(normalize, scale, data.TEST_CROP_SIZE)

    if split == "train":
        _refuse(
            {
                "AUG.AA_TYPE": aug.ENABLE and bool(aug.AA_TYPE),
                "AUG.RE_PROB": aug.ENABLE and aug.RE_PROB > 0,
                "AUG.NUM_SAMPLE": aug.NUM_SAMPLE > 1,
                "DATA.TRAIN_JITTER_MOTION_SHIFT": data.TRAIN_JITTER_MOTION_SHIFT,
                "DATA.TRAIN_CROP_NUM_TEMPORAL": data.TRAIN_CROP_NUM_TEMPORAL > 1,
                "DATA.TRAIN_CROP_NUM_SPATIAL": data.TRAIN_CROP_NUM_SPATIAL > 1,
                "DATA.TIME_DIFF_PROB": data.TIME_DIFF_PROB > 0,
                "DATA.SSL_COLOR_JITTER": data.SSL_COLOR_JITTER,
                "MULTIGRID.SHORT_CYCLE": cfg.MULTIGRID.SHORT_CYCLE,
            }
        )
    area = aspect = None
    if split == "train":
        area, aspect = _relative_ranges(data.TRAIN_JITTER_SCALES_RELATIVE, data.TRAIN_JITTER_ASPECT_RELATIVE)
    train = TrainTransform(
        normalize,
        scales=(low, high),
        crop=data.TRAIN_CROP_SIZE,
        full_crop=cfg.MULTIGRID.DEFAULT_S or data.TRAIN_CROP_SIZE,
        flip=data.RANDOM_FLIP,
        inverse_scale=data.INV_UNIFORM_SAMPLE,
        area_range=area,
        aspect_range=aspect,
    )
    if area is None:
        _check_crop("DATA.TRAIN_CROP_SIZE", train.crop, train.short_side())
    if split == "val" and not data.VAL_RANDOM_VIEW:
        return EvalTransform(normalize, train.short_side(), train.crop)
    return train


def _refuse(asked: dict[str, bool]) -> None:
    """An augmentation that is asked for and not there stops the job; nothing is left out silently."""
    wanted = [key for key, on in asked.items() if on]
    if wanted:
        raise NotImplementedError(f"{', '.join(wanted)}: not available for this data set; leave at the default (off)")


def _relative_ranges(area: Sequence[float], aspect: Sequence[float]):
    if bool(area) != bool(aspect):
        raise ValueError(
            f"DATA.TRAIN_JITTER_SCALES_RELATIVE={list(area)} and DATA.TRAIN_JITTER_ASPECT_RELATIVE={list(aspect)}: "
            "set both (random area and aspect) or neither (random scale and crop)"
        )
    return (tuple(area), tuple(aspect)) if area else (None, None)


def _check_crop(key: str, crop: int, scale: int) -> None:
    if crop > scale:
        raise ValueError(
            f"{key}={crop} does not fit into frames of short side {scale}: "
            "lower it or raise DATA.TRAIN_JITTER_SCALES[0]"
        )
