"""Clips with boxes: the recipe of AVA, in which every step moves the boxes along with the frames.

The frames of the original are BGR until the end, ours RGB from the start; ``build_box_transform`` turns mean,
deviation and channel order so that the network sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from slowfast.datasets.batch import Shift
from slowfast.datasets.transforms import geometry
from slowfast.datasets.transforms.color import color_jitter, lighting_shift
from slowfast.datasets.transforms.presets import Normalize

JITTER = 0.4  # of brightness, contrast and saturation
LIGHTING = 0.1


@dataclass(frozen=True)
class BoxColor:
    """Colour of training clips: lighting along the principal components and, unless ``lighting_only``, jitter before.

    Contrast moves values to or from the mean luminance of each frame. Jittered values stay within 0..255; they are
    floats, so such clips do not travel as bytes. Lighting is one value per channel and leaves pixels as they are.
    """

    eigenvalues: Sequence[float]
    eigenvectors: Sequence[Sequence[float]]
    lighting_only: bool = True

    def __call__(self, clip: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """``clip`` [3, T, H, W] in RGB of 0..255, any type -> the clip, jittered, and [3] to add to values of 0..1."""
        if not self.lighting_only:
            frames = clip.float().transpose(0, 1) / 255  # [C, T, H, W] -> [T, C, H, W]
            strengths = dict.fromkeys(("brightness", "contrast", "saturation"), JITTER)
            clip = 255 * color_jitter(frames, rng, **strengths, frame_contrast=True).transpose(0, 1)
        return clip, lighting_shift(LIGHTING, self.eigenvalues, self.eigenvectors, rng)


@dataclass(frozen=True)
class BoxTransform:
    """Scale, crop, flip and colour of clips with boxes.

    With ``random``, the short side is drawn from ``scales``, the crop lies anywhere, and ``flip`` happens half the
    time. Otherwise the short side becomes ``scales[0]``, the crop is the centre one and ``flip`` happens always.
    Without a ``crop`` the whole frame stays, as wide as it is. With ``rounded``, resized values are rounded to 8 bits.
    """

    normalize: Normalize
    scales: tuple[int, int]
    crop: int | None
    random: bool = False
    inverse_scale: bool = True  # the inverse of the short side is uniform, not the short side
    flip: bool = False
    rounded: bool = True
    color: BoxColor | None = None

    def __call__(
        self, frames: Tensor, boxes: Tensor, rng: np.random.Generator | None = None, *, crop_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Frames (uint8 [T, H, W, 3], RGB) and boxes (fractions of the frame, [R, 4]) -> the clip with its boxes.

        The clip is float32 [C, T, h, w]; its boxes are float32 [R, 4] in its pixels, cut at its edges. Training may
        ask for a smaller ``crop_size``; scales shrink in proportion.
        """
        clip, boxes, changes = self.pixels(frames, boxes, rng, crop_size=crop_size)
        clip = self.normalize(clip)
        for change in changes:
            change.apply(clip)
        return clip, boxes

    def pixels(
        self, frames: Tensor, boxes: Tensor, rng: np.random.Generator | None = None, *, crop_size: int | None = None
    ) -> tuple[Tensor, Tensor, tuple[Shift, ...]]:
        """The same clip before it is normalised, its boxes, and what changes it after that.

        Values of 0..255, in 8 bits unless something made them fractions: resizing that is not ``rounded``, or jitter.
        """
        old = tuple(frames.shape[1:3])
        clip = frames.permute(3, 0, 1, 2)  # [T, H, W, C] -> [C, T, H, W]
        boxes = boxes.double() * torch.tensor([old[1], old[0]] * 2)
        boxes = geometry.clip_boxes(boxes, *old)
        size = None if self.crop is None else crop_size or self.crop
        new = geometry.short_side_size(*old, self._short_side(size, rng))
        boxes = geometry.scale_boxes(boxes, old, new)
        clip, boxes = self._cut(clip, boxes, new, size, rng)
        if self.flip and (not self.random or rng.random() < 0.5):
            clip, boxes = geometry.flip(clip, boxes)
        changes: tuple[Shift, ...] = ()
        if self.color is not None:
            clip, shift = self.color(clip, rng)
            changes = (Shift(self.normalize.difference(shift)),)
        boxes = geometry.clip_boxes(boxes, *clip.shape[-2:])
        return clip, boxes.float(), changes

    def _short_side(self, size: int | None, rng: np.random.Generator | None) -> int:
        low, high = (side if size is None else round(side * size / self.crop) for side in self.scales)
        return geometry.jittered_size(low, high, rng, inverse=self.inverse_scale) if self.random else low

    def _cut(
        self, clip: Tensor, boxes: Tensor, new: tuple[int, int], size: int | None, rng: np.random.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """The part of ``clip`` resized to ``new`` that is kept, computed alone; values of 0..255."""
        if size is None:
            clip = geometry.resize(clip if new == tuple(clip.shape[-2:]) else clip.contiguous().float(), *new)
        else:
            if self.random:
                top, left = geometry.random_offsets(*new, size, rng)
            else:
                top, left = geometry.uniform_offsets(*new, size, 1)
            boxes = boxes - boxes.new_tensor([left, top, left, top])
            if new == tuple(clip.shape[-2:]):
                clip = geometry.crop(clip, top, left, size, size)[0]
            else:
                clip = geometry.resized_window(clip, *new, top, left, size)
        return clip.round().to(torch.uint8) if self.rounded else clip, boxes


def build_box_transform(cfg: CfgNode, split: str) -> BoxTransform:
    """The recipe of ``split`` (train, val or test) for clips with boxes.

    Training takes a random crop of ``DATA.TRAIN_CROP_SIZE`` at a short side from ``DATA.TRAIN_JITTER_SCALES``;
    validation the centre of the short side ``DATA.TEST_CROP_SIZE``; a test whole frames of that short side.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split {split!r} is not one of train, val, test")
    data, ava, backend = cfg.DATA, cfg.AVA, cfg.AVA.IMG_PROC_BACKEND
    if backend not in ("cv2", "pytorch"):
        raise ValueError(f"AVA.IMG_PROC_BACKEND={backend!r} is not cv2 (resized to 8 bits) or pytorch (not rounded)")
    normalize = Normalize(
        tuple(data.MEAN[::-1]), tuple(data.STD[::-1]), reverse_channels=ava.BGR != data.REVERSE_INPUT_CHANNEL
    )
    if split != "train":
        side = data.TEST_CROP_SIZE
        crop = side if split == "val" else None
        return BoxTransform(normalize, (side, side), crop, flip=ava.TEST_FORCE_FLIP, rounded=backend == "cv2")
    (low, high), size = data.TRAIN_JITTER_SCALES, data.TRAIN_CROP_SIZE
    if size > low:
        raise ValueError(
            f"DATA.TRAIN_CROP_SIZE={size} does not fit into frames of short side {low}: "
            "lower it or raise DATA.TRAIN_JITTER_SCALES[0]"
        )
    color = BoxColor(data.TRAIN_PCA_EIGVAL, data.TRAIN_PCA_EIGVEC, ava.TRAIN_PCA_JITTER_ONLY)
    return BoxTransform(
        normalize,
        (low, high),
        size,
        random=True,
        inverse_scale=backend == "cv2",
        flip=data.RANDOM_FLIP,
        rounded=backend == "cv2",
        color=color if ava.TRAIN_USE_COLOR_AUGMENTATION else None,
    )
