"""Colour: jitter, grey, blur, lighting, differences over time; one draw for all frames of a clip.

Frames are uint8 [T, C, H, W] in RGB unless said otherwise, in any memory order. Arithmetic is torchvision's,
which follows PIL on 8-bit images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as operators

LUMINANCE = (0.299, 0.587, 0.114)


def grayscale(frames: Tensor) -> Tensor:
    """The luminance in all three channels."""
    return operators.rgb_to_grayscale(frames, num_output_channels=3)


def color_jitter(
    frames: Tensor,
    rng: np.random.Generator,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    frame_contrast: bool = False,
) -> Tensor:
    """Brightness, contrast, saturation (factors in 1 +- strength) and hue (a turn in +- strength), in random order.

    Contrast moves values to or from the mean luminance of the whole clip, or with ``frame_contrast`` of each frame.
    """
    factors = [rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength) for strength in (brightness, contrast, saturation)]
    turn = rng.uniform(-hue, hue)
    steps = {
        0: (brightness, lambda image: operators.adjust_brightness(image, factors[0])),
        1: (contrast, lambda image: _adjust_contrast(image, factors[1], frame_contrast)),
        2: (saturation, lambda image: operators.adjust_saturation(image, factors[2])),
        3: (hue, lambda image: operators.adjust_hue(image, turn)),
    }
    for step in rng.permutation(4):
        strength, apply = steps[int(step)]
        if strength:
            frames = apply(frames)
    return frames


def _adjust_contrast(frames: Tensor, factor: float, each_frame: bool) -> Tensor:
    if each_frame:
        return operators.adjust_contrast(frames, factor)
    tall = frames.transpose(0, 1).flatten(1, 2)  # [T, C, H, W] -> [C, T * H, W]
    return operators.adjust_contrast(tall, factor).unflatten(1, (len(frames), -1)).transpose(0, 1)


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    """Each frame blurred on its own; ``sigma`` in pixels. Columns, then rows, in float32; edges are mirrored."""
    longest = 2 * min(frames.shape[-2:]) - 1  # a mirror shows no more than the frame
    size = min(2 * math.ceil(3 * sigma) + 1, longest)
    blurred = frames.float()
    for kernel in ([1, size], [size, 1]):
        blurred = operators.gaussian_blur(blurred, kernel, [sigma, sigma])
    return blurred.round_().to(frames.dtype)


@dataclass(frozen=True)
class SelfSupervisedColor:
    """The colour recipe of contrastive learning (``DATA.SSL_COLOR_JITTER``).

    Plainly: grey with probability ``gray``, then jitter always. With ``moco`` the recipe of MoCo v2: jitter with
    probability 0.8, grey with ``gray``, blur with 0.5. Blur of a sigma uniform in ``blur_sigma`` (pixels) is left
    out where the larger end is 0. Every frame is blurred on its own.
    """

    strengths: tuple[float, float, float] = (0.4, 0.4, 0.4)  # brightness, contrast, saturation
    hue: float = 0.1
    gray: float = 0.0
    moco: bool = False
    blur_sigma: tuple[float, float] = (0.0, 0.0)

    def __call__(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        """New frames [T, C, H, W]."""
        if self.moco:
            frames = self._jitter(frames, rng) if rng.random() < 0.8 else frames
            frames = self._gray(frames, rng)
        else:
            frames = self._jitter(self._gray(frames, rng), rng)
        if self.blur_sigma[1] > 0 and rng.random() < 0.5:
            frames = gaussian_blur(frames, float(rng.uniform(*self.blur_sigma)))
        return frames

    def _jitter(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        brightness, contrast, saturation = self.strengths
        return color_jitter(frames, rng, brightness=brightness, contrast=contrast, saturation=saturation, hue=self.hue)

    def _gray(self, frames: Tensor, rng: np.random.Generator) -> Tensor:
        return grayscale(frames) if rng.random() < self.gray else frames


def lighting_shift(
    std: float,
    eigenvalues: Sequence[float],
    eigenvectors: Sequence[Sequence[float]],
    rng: np.random.Generator,
) -> Tensor:
    """[3]: what principal-component lighting adds to each channel, for values of 0..1.

    ``eigenvectors`` has a row per channel and a column per component, each moved by N(0, std) of its eigenvalue.
    (Krizhevsky et al. 2012.)
    """
    moved = rng.normal(0.0, std, len(eigenvalues)) * np.asarray(eigenvalues)
    return torch.from_numpy(np.asarray(eigenvectors) @ moved).float()


def time_difference(frames: Tensor, following: Tensor) -> Tensor:
    """Grey frames minus those that follow them, as float32 of 0..255 with 127.5 where nothing moves.

    Both are [T, H, W, 3] of 0..255; the result has three equal channels.
    """
    weights = torch.tensor(LUMINANCE)
    difference = (frames.float() @ weights) - (following.float() @ weights)
    return ((difference + 255) / 2)[..., None].expand(*difference.shape, 3)
