"""The recipe of each split: from decoded frames to the clip that a network sees.

``build_clip_transform`` reads the configuration once and gives a plain object. Work is done in
the cheapest order that gives the same numbers: crops are taken before 8-bit frames become floats
where nothing is resized, and only what is left after cropping is normalised.

A transform that ``can_defer`` leaves normalisation to the device: its ``pixels`` are a clip of 0..255. Tests lose
nothing by it; training clips are resized in 8 bits, which adds an error of 0.3 grey levels (root mean square).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.batch import Patch, Shift
from slowfast.datasets.sampling import View
from slowfast.datasets.transforms import geometry
from slowfast.datasets.transforms.color import SelfSupervisedColor
from slowfast.datasets.transforms.erasing import RandomErasing
from slowfast.datasets.transforms.masking import MaskRule
from slowfast.datasets.transforms.randaugment import RandAugment

Operation = Callable[[Tensor, np.random.Generator], Tensor]


@dataclass(frozen=True)
class SamplePlan:
    """What a data set makes of one video, around the transform of a single clip.

    ``num_clips`` random clips with gaps of ``min_gap`` to ``max_gap`` frames between them, each transformed
    ``copies`` times; with probability ``time_difference`` the frames of a clip are replaced by their differences;
    ``mask`` draws a mask for each transformed clip. They are samples of their own, or ``as_views`` of one sample.
    """

    num_clips: int = 1
    min_gap: float = -math.inf
    max_gap: float = math.inf
    copies: int = 1
    time_difference: float = 0.0
    mask: MaskRule | None = None
    as_views: bool = False

    @property
    def num_samples(self) -> int:
        """Clips that one row of the data set gives."""
        return self.num_clips * self.copies


ONE_CLIP = SamplePlan()


class ClipTransform(Protocol):
    """Frames (uint8 [T, H, W, 3], RGB) to a clip (float32 [C, T, H, W]).

    May have a ``plan``, see ``SamplePlan``; with time differences, frames are float32 of 0..255.
    """

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
    """Values of 0..255 to (x / 255 - mean) / std, and the channel order that the network expects."""

    mean: Sequence[float]
    std: Sequence[float]
    reverse_channels: bool = False

    def __call__(self, clip: Tensor) -> Tensor:
        """``clip`` [..., C, T, H, W], uint8 or float of 0..255; gives a new contiguous float32 tensor."""
        mean, std = (torch.tensor(values, dtype=torch.float32)[:, None, None, None] for values in (self.mean, self.std))
        factor, shift = (1 / (255 * std)).to(clip.device), (mean / std).to(clip.device)
        clip = (clip.contiguous() * factor).sub_(shift)
        return clip.flip(-4) if self.reverse_channels else clip

    def difference(self, values: Tensor) -> Tensor:
        """What adding ``values`` [C] to values of 0..1 adds to the normalised clip."""
        values = values / torch.tensor(self.std, dtype=torch.float32)
        return values.flip(0) if self.reverse_channels else values


@dataclass(frozen=True)
class TrainTransform:
    """Random colour, scale, crop, flip and erasing. Short-cycle training asks for a smaller ``crop_size`` per clip.

    ``on_frames`` act on the whole decoded frames (uint8 [T, C, H, W]), in order; ``on_clip`` on the normalised clip.
    """

    normalize: Normalize
    scales: tuple[int, int]
    crop: int
    full_crop: int  # the crop that ``scales`` were chosen for; smaller crops lower the smaller scale
    flip: bool = True
    inverse_scale: bool = False
    area_range: tuple[float, float] | None = None  # both: random area and aspect in place of scale and crop
    aspect_range: tuple[float, float] | None = None
    motion_shift: bool = False  # the random area moves evenly from one place to another
    on_frames: Sequence[Operation] = ()
    on_clip: Sequence[Operation] = ()
    plan: SamplePlan = ONE_CLIP

    def short_side(self, crop_size: int | None = None) -> int:
        """The smaller end of the scales, in proportion to the crop."""
        return round(self.scales[0] * (crop_size or self.crop) / self.full_crop)

    @property
    def can_defer(self) -> bool:
        """Whether ``pixels`` can be had: what acts on normalised clips must be known before there are any."""
        return all(hasattr(operation, "patches") for operation in self.on_clip)

    def __call__(self, frames, rng=None, *, view=None, crop_size=None) -> Tensor:
        """See ``ClipTransform``."""
        clip = self.normalize(self._placed(frames, rng, crop_size, in_bytes=False))
        for operation in self.on_clip:
            clip = operation(clip, rng)
        return clip

    def pixels(self, frames, rng=None, *, view=None, crop_size=None) -> tuple[Tensor, tuple[Patch | Shift, ...]]:
        """The clip before it is normalised, 8-bit where the frames are, and what changes it after that."""
        clip = self._placed(frames, rng, crop_size, in_bytes=frames.dtype == torch.uint8)
        return clip, tuple(patch for operation in self.on_clip for patch in operation.patches(clip.shape, rng))

    def _placed(self, frames: Tensor, rng: np.random.Generator, crop_size: int | None, in_bytes: bool) -> Tensor:
        """Frames [T, H, W, C] to a clip [C, T, size, size] of 0..255."""
        if self.on_frames:
            frames = frames.permute(0, 3, 1, 2).to(torch.uint8)  # [T, H, W, C] -> [T, C, H, W]; cuts off fractions
            for operation in self.on_frames:
                frames = operation(frames, rng)
            frames = frames.permute(0, 2, 3, 1)
        clip = frames.permute(3, 0, 1, 2)  # [T, H, W, C] -> [C, T, H, W]
        size = crop_size or self.crop
        if self.area_range:
            clip = self._random_part(clip, size, rng, in_bytes)
        else:
            clip = self._random_crop(clip, size, crop_size, rng, in_bytes)
        return geometry.random_flip(clip, rng)[0] if self.flip else clip

    def _random_part(self, clip: Tensor, size: int, rng: np.random.Generator, in_bytes: bool) -> Tensor:
        """A part of random area and aspect, brought to ``size``."""
        first = geometry.area_aspect_box(*clip.shape[-2:], self.area_range, self.aspect_range, rng)
        if not self.motion_shift:
            return geometry.resized_crop(clip, first, size, in_bytes=in_bytes)[0]
        last = geometry.area_aspect_box(*clip.shape[-2:], self.area_range, self.aspect_range, rng)
        return geometry.shifted_resized_crop(clip, first, last, size, in_bytes=in_bytes)

    def _random_crop(
        self, clip: Tensor, size: int, crop_size: int | None, rng: np.random.Generator, in_bytes: bool
    ) -> Tensor:
        """A square of ``size`` out of the clip at a random scale."""
        height, width = clip.shape[-2:]
        scale = geometry.jittered_size(self.short_side(crop_size), self.scales[1], rng, inverse=self.inverse_scale)
        scaled = geometry.short_side_size(height, width, scale)
        top, left = geometry.random_offsets(*scaled, size, rng)
        if scaled == (height, width) or in_bytes:
            return geometry.crop(geometry.resize_bytes(clip, *scaled), top, left, size, size)[0]
        return geometry.resized_window(clip, *scaled, top, left, size)


@dataclass(frozen=True)
class EvalTransform:
    """One short side, then the crop of the view: three along the longer side, or the centre."""

    normalize: Normalize
    scale: int
    crop: int
    plan: SamplePlan = ONE_CLIP
    rounded: bool = False  # resized values are rounded to 8 bits
    can_defer = True

    def short_side(self, crop_size: int | None = None) -> int:
        """The scale: frames decoded at it need no resizing."""
        return self.scale

    def scaled(self, frames: Tensor) -> Tensor:
        """What the crops of one temporal clip share: [C, T, H, W], 8-bit if ``rounded`` or as large as needed."""
        clip = _short_side_float(frames.permute(3, 0, 1, 2), self.scale)
        return clip.round().to(torch.uint8) if self.rounded else clip

    def part(self, clip: Tensor, view: View | None = None) -> Tensor:
        """The pixels of one view out of what ``scaled`` gave."""
        return geometry.uniform_crop(clip, self.crop, crop_position(view))[0]

    def cropped(self, clip: Tensor, view: View | None = None) -> Tensor:
        """The clip of one view out of what ``scaled`` gave."""
        return self.normalize(self.part(clip, view))

    def pixels(self, frames, rng=None, *, view=None, crop_size=None) -> tuple[Tensor, tuple[Patch | Shift, ...]]:
        """The clip before it is normalised, and nothing that changes it later."""
        return self.part(self.scaled(frames), view), ()

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
    data = cfg.DATA
    normalize = Normalize(tuple(data.MEAN), tuple(data.STD), data.REVERSE_INPUT_CHANNEL)
    plan = build_sample_plan(cfg, split)
    low, high = data.TRAIN_JITTER_SCALES
    if split == "test":
        if not 1 <= cfg.TEST.NUM_SPATIAL_CROPS <= 3:
            raise ValueError(f"TEST.NUM_SPATIAL_CROPS={cfg.TEST.NUM_SPATIAL_CROPS} is not 1, 2 or 3")
        scale = data.TEST_CROP_SIZE if cfg.TEST.NUM_SPATIAL_CROPS > 1 else low
        _check_crop("DATA.TEST_CROP_SIZE", data.TEST_CROP_SIZE, scale)
        return EvalTransform(normalize, scale, data.TEST_CROP_SIZE, plan)

    area = aspect = None
    on_frames, on_clip = (), ()
    if split == "train":
        area, aspect = _relative_ranges(data.TRAIN_JITTER_SCALES_RELATIVE, data.TRAIN_JITTER_ASPECT_RELATIVE)
        on_frames, on_clip = build_operations(cfg)
        if data.TRAIN_JITTER_MOTION_SHIFT and area is None:
            raise ValueError(
                "DATA.TRAIN_JITTER_MOTION_SHIFT moves a part of random area and aspect: set "
                "DATA.TRAIN_JITTER_SCALES_RELATIVE and DATA.TRAIN_JITTER_ASPECT_RELATIVE too"
            )
    train = TrainTransform(
        normalize,
        scales=(low, high),
        crop=data.TRAIN_CROP_SIZE,
        full_crop=cfg.MULTIGRID.DEFAULT_S or data.TRAIN_CROP_SIZE,
        flip=data.RANDOM_FLIP,
        inverse_scale=data.INV_UNIFORM_SAMPLE,
        area_range=area,
        aspect_range=aspect,
        motion_shift=data.TRAIN_JITTER_MOTION_SHIFT and split == "train",
        on_frames=on_frames,
        on_clip=on_clip,
        plan=plan,
    )
    if area is None:
        _check_crop("DATA.TRAIN_CROP_SIZE", train.crop, train.short_side())
    if split == "val" and not data.VAL_RANDOM_VIEW:
        return EvalTransform(normalize, train.short_side(), train.crop, plan)
    return train


def build_operations(cfg: CfgNode) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """What training does to decoded frames (colour recipe, RandAugment) and to normalised clips (erasing)."""
    data, aug = cfg.DATA, cfg.AUG
    on_frames: list[Operation] = []
    if data.SSL_COLOR_JITTER:
        # Of each pair, the first belongs to the plain recipe and the second to that of MoCo v2.
        sigmas = data.SSL_BLUR_SIGMA_MIN[data.SSL_MOCOV2_AUG], data.SSL_BLUR_SIGMA_MAX[data.SSL_MOCOV2_AUG]
        on_frames.append(
            SelfSupervisedColor(
                tuple(data.SSL_COLOR_BRI_CON_SAT),
                data.SSL_COLOR_HUE,
                data.COLOR_RND_GRAYSCALE,
                data.SSL_MOCOV2_AUG,
                sigmas,
            )
        )
    if aug.ENABLE and aug.AA_TYPE:
        on_frames.append(RandAugment.from_spec(aug.AA_TYPE, aug.INTERPOLATION))
    on_clip: list[Operation] = []
    if aug.ENABLE and aug.RE_PROB > 0:
        on_clip.append(RandomErasing(aug.RE_PROB, aug.RE_MODE, aug.RE_COUNT))
    return tuple(on_frames), tuple(on_clip)


def build_sample_plan(cfg: CfgNode, split: str) -> SamplePlan:
    """How many clips and copies of a video make a training sample, and the masks of every split."""
    data, aug = cfg.DATA, cfg.AUG
    mask = build_mask_rule(cfg) if aug.GEN_MASK_LOADER else None
    if split != "train":
        return SamplePlan(mask=mask)
    copies = {"DATA.TRAIN_CROP_NUM_SPATIAL": data.TRAIN_CROP_NUM_SPATIAL, "AUG.NUM_SAMPLE": aug.NUM_SAMPLE}
    for key, number in {"DATA.TRAIN_CROP_NUM_TEMPORAL": data.TRAIN_CROP_NUM_TEMPORAL, **copies}.items():
        if number < 1:
            raise ValueError(f"{key}={number} is not 1 or more")
    return SamplePlan(
        num_clips=data.TRAIN_CROP_NUM_TEMPORAL,
        min_gap=cfg.CONTRASTIVE.DELTA_CLIPS_MIN,
        max_gap=cfg.CONTRASTIVE.DELTA_CLIPS_MAX,
        copies=math.prod(copies.values()),
        time_difference=data.TIME_DIFF_PROB,
        mask=mask,
        as_views=cfg.MODEL.MODEL_NAME == "ContrastiveModel",
    )


def build_mask_rule(cfg: CfgNode) -> MaskRule:
    """The masks that ``AUG.MASK_*`` describe. A tube may leave out the steps of time of its grid."""
    aug = cfg.AUG
    if aug.MASK_TUBE and aug.MASK_FRAMES:
        raise ValueError("AUG.MASK_TUBE and AUG.MASK_FRAMES are both True: choose one")
    grid = tuple(aug.MASK_WINDOW_SIZE)
    if aug.MASK_TUBE and len(grid) == 2:
        grid = (cfg.DATA.NUM_FRAMES // cfg.MVIT.PATCH_STRIDE[0], *grid)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"AUG.MASK_WINDOW_SIZE={aug.MASK_WINDOW_SIZE} is not [T, H, W] cells")
    if not 0 <= aug.MASK_RATIO <= 1:
        raise ValueError(f"AUG.MASK_RATIO={aug.MASK_RATIO} is not within 0 and 1")
    kind = "tube" if aug.MASK_TUBE else "frame" if aug.MASK_FRAMES else "block"
    return MaskRule(grid, aug.MASK_RATIO, kind, aug.MAX_MASK_PATCHES_PER_BLOCK)


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
